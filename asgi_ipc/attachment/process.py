"""This process: which attachments it has, one for each prefix, and what uses them.

`attach` finds or makes one. It is released when no layer refers to it any more; a forked child
begins with none. If a fork ran no fork handlers, `notice_fork` does what they do: code that uses
what a process remembers of itself calls it first. This module must not know what an attachment
does.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol, TypeVar

from .. import clock
from ..errors import IncompatibleSegment, Reentered
from ..segment import notes
from ..segment.files import Members
from ..segment.identity import wiped_word
from ..segment.notes import note, tell
from ..segment.opening import attach as attach_segment
from ..segment.paths import Paths, full_prefix
from ..segment.section import Waits
from ..segment.wanted import Provider, Wanted
from .attachment import Attachment
from .inbox import Inbox
from .resources import Resources, close_inherited, lock_of
from .weak import WeakKeys

R = TypeVar("R")


class User(Protocol):
    """An object that is told about attachments: see `register`."""

    def detach(self, attachment: Attachment) -> None:
        """An attachment must not be used any more."""

    def forked(self) -> None:
        """This object now belongs to another process."""


# By prefix, or by provider where it is not shared memory. Used while the guard is held. One that is
# `detached` stays until it is replaced.
_attachments: weakref.WeakValueDictionary[Provider | str, Attachment] = (
    weakref.WeakValueDictionary()
)
_users: WeakKeys[User, None] = WeakKeys()
# What is not released yet, and whose it is, also if the segment was removed. An entry goes when its
# release has ended: one that fails, for lack of memory for example, is tried again.
_held: dict[Resources, weakref.ref[Attachment]] = {}
# Inboxes of attachments that are gone, by prefix and nonce of the segment. What was drained into
# them and not delivered yet is for the next attachment of this process.
_kept: dict[tuple[str, int], dict[str, Inbox]] = {}
_directories: set[str] = set()  # beside the segments that this process ever attached to


class _Guard:
    """Held while this process attaches or leaves a segment. Finalizers run at any time, also in a
    thread that holds it: they only try to enter, and otherwise leave their work to the holder.

    As with a section, a signal handler may raise an exception anywhere: each method enters in a
    `try` whose `except` leaves again, and both may happen twice.
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    def run(self, call: Callable[..., R], *args: Any) -> R:
        """Return ``call(*args)``, which is made while this thread holds the guard."""
        if self._lock._is_owned() and _guarded(sys._getframe(1)):
            raise Reentered(
                "the layer was called by a signal handler or __del__ while the same thread was "
                "attaching it. Set a flag there, or call from another thread"
            )
        try:
            self._lock.acquire()  # it may be ours already: an earlier call lost track of it
            result = call(*args)
            self._leave()
        except BaseException:
            self._leave()
            raise
        return result

    def _leave(self) -> None:
        """Release the lock. No outer call holds it: none began while this thread held it."""
        while self._lock._is_owned():
            self._lock.release()

    def release_gone(self) -> None:
        """Leave the segments of attachments that are gone, unless a thread holds the guard, which
        then does it."""
        if self._lock._is_owned():
            return
        try:
            while _gone() and self._lock.acquire(False):
                for resources in _gone():
                    _release(resources)
                self._leave()
        except BaseException:
            self._leave()
            raise

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        self._leave()  # unless a call in between did: that of another fork handler, or a finalizer
        self.release_gone()


def _guarded(frame: FrameType | None) -> bool:
    """Whether a call at `frame` or further out enters the guard."""
    codes = _Guard.run.__code__, _Guard.release_gone.__code__
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


_guard = _Guard()

# -- attaching ------------------------------------------------------------------------------------


def attach(wanted: Wanted, waits: Waits, flush: bool = False) -> Attachment:
    """Return this process's attachment to a prefix, made if there is none.

    `flush` is for an attachment that is made: see there.
    """
    if wanted.provider is None:
        wanted = wanted._replace(prefix=full_prefix(wanted.prefix))
    try:
        found = _guard.run(_find_or_make, wanted, waits, flush)
    finally:
        _guard.release_gone()
        tell()
    return found


def _find_or_make(wanted: Wanted, waits: Waits, flush: bool) -> Attachment:
    key = wanted.provider or wanted.prefix
    found = _attachments.get(key)
    if found is not None and not found.is_usable():
        # Layers that were attached before notice it themselves, and raise SegmentVanished.
        found = None
    if found is None:
        found = _attachments[key] = _make(wanted, waits, flush)
    elif found.segment.lock_kind != wanted.lock_kind:
        raise IncompatibleSegment(
            f"prefix {wanted.prefix!r}: this process already uses it, with another lock= option; "
            "give all of its layers the same"
        )
    else:
        found.segment.warn_of_mode(wanted)
        if found.segment.sizes != wanted.sizes:
            note(
                "prefix %r: this process already uses it, with %s; these sizes apply to all of "
                "its layers",
                wanted.prefix,
                str(found.segment.sizes),
            )
    return found


def _make(wanted: Wanted, waits: Waits, flush: bool) -> Attachment:
    # Another thread may just have released an attachment, and not have reached its finalizer. This
    # process would still own queues by it, and refuse them to the new one.
    for resources in _gone():
        _release(resources)
    if wanted.provider is None:
        _directories.add(Paths(wanted.prefix).directory)
    open_segment = attach_segment if wanted.provider is None else wanted.provider.attach
    segment, index = open_segment(wanted, waits.timeout)
    try:
        resources = Resources(wanted.prefix, segment, index, lock_of(segment))
        made = Attachment(resources, waits, detach, flush)
    except BaseException:
        segment.leave(index)
        raise
    _held[resources] = weakref.ref(made, _release_later)
    resources.adopt(_kept.get(resources.identity, {}))
    _kept.pop(resources.identity, None)
    return made


def attached_processes(members: str) -> dict[int, int]:
    """Return the attached processes, read from the file of byte locks at `members`: index → pid."""
    notice_fork()
    try:
        return _guard.run(Members.glance, members)
    finally:
        _guard.release_gone()


# -- users ----------------------------------------------------------------------------------------


def register(user: User) -> None:
    """From now on, tell `user` when an attachment must not be used any more, and of a fork."""
    notice_fork()  # which forgets the users that it does not know
    _users[user] = None
    at_fork = _at_fork
    if at_fork is not None:
        at_fork[1].append(user)  # the list may have been made before


def detach(attachment: Attachment) -> None:
    """Make the next call of every layer of this process attach again."""
    attachment.detached = True  # first: see `Base.attach`
    for user in _users.keys():
        user.detach(attachment)


def detach_all() -> list[Attachment]:
    """Do the same for all prefixes, because what the environment adds to them changes. Returns the
    attachments that were in use."""
    notice_fork()
    found = [attachment for attachment in _in_use() if not attachment.detached]
    for attachment in found:
        detach(attachment)
    return found


# -- releasing ------------------------------------------------------------------------------------


def _in_use() -> list[Attachment]:
    held = _held.copy().values()
    return [attachment for of in held if (attachment := of()) is not None]


def _gone() -> list[Resources]:
    """What attachments that are gone have left to release."""
    held = _held.copy().items()
    return [each for each, of in held if (attachment := of()) is None or attachment.ended]


def _release_later(_: object) -> None:
    """Leave the segment of an attachment that is gone; called by its finalizer, the weak reference
    to it. Where cycles are collected, Python 3.15 clears references without a callback later."""
    if not isinstance(_held, dict):
        # The interpreter is taking this module down, without having called `_leave_at_exit` (so do
        # sub-interpreters of uWSGI). The kernel tells the other processes.
        return
    _guard.release_gone()


def _release(resources: Resources) -> None:
    """Leave a segment, and keep what was drained from it and can still be received. A second
    call does what the first did not reach."""
    if resources.pid != os.getpid():
        resources.disown()  # forked without fork handlers: all of this is the parent's
    else:
        _keep_inboxes(resources)
        resources.release()
    _held.pop(resources, None)


def _keep_inboxes(resources: Resources) -> None:
    now = clock.monotonic()
    for identity, kept in _kept.copy().items():
        if identity[0] == resources.identity[0] or not _any_live(kept, now):
            del _kept[identity]
    if _any_live(resources.inboxes, now):
        for inbox in resources.inboxes.values():
            inbox.leave()
        _kept[resources.identity] = resources.inboxes


def _any_live(inboxes: dict[str, Inbox], now: float) -> bool:
    return any(inbox.lives(now) for inbox in inboxes.values())


# -- exit -----------------------------------------------------------------------------------------


def _leave_at_exit() -> None:
    """Leave all segments. Handlers that run later, and daemon threads, may call a layer again: that
    attaches once more, and the kernel tells the other processes when this one is gone."""
    notice_fork()
    try:
        _guard.run(_end_all)
    finally:
        _guard.release_gone()
        tell()


def _end_all() -> None:
    for attachment in _in_use():
        attachment.end()
        detach(attachment)


atexit.register(_leave_at_exit)

# -- fork -----------------------------------------------------------------------------------------

_here = wiped_word()  # 1 in the process that has run the handlers, 0 in a new one
_here[()] = 1.0
_noticing: dict[int, Any] = {}  # by process id: another process's may be locked


def notice_fork() -> None:
    """Run the handlers of a forked child, if it was forked in C and nobody ran them."""
    if not _here[()]:
        with _noticing.setdefault(os.getpid(), threading.RLock()):
            if not _here[()]:
                _after_fork_in_child()


# What the child of a fork releases, and whom it tells. Without the GIL, a dict that another thread
# uses at that moment may stay locked in the child: the parent reads it, the child replaces it.
_at_fork: tuple[list[Attachment], list[User]] | None = None


def _before_fork() -> None:
    global _at_fork
    # In a process that was itself forked in C, the guard may be locked by a thread of its parent.
    notice_fork()
    _guard.before_fork()
    _at_fork = _in_use(), _users.keys()
    # Again, for a user that was registered after the list was made and before it was found there.
    _at_fork[1].extend(_users.keys())


def _after_fork_in_parent() -> None:
    global _at_fork
    _at_fork = None
    _guard.after_fork()


def _after_fork_in_child() -> None:
    """Release the parent's attachments: the child attaches with its first call."""
    global _at_fork, _attachments, _guard, _held, _kept, _users
    # Kept until the end: after an interruption, all of this is done again.
    _at_fork = _at_fork or (_in_use(), _users.keys())  # not known yet if this was forked in C
    attachments, users = _at_fork
    _guard, _attachments, _users = _Guard(), weakref.WeakValueDictionary(), WeakKeys()
    _held, _kept = {}, {}
    for user in users:
        _users[user] = None  # a user may be listed twice
    for attachment in attachments:
        attachment.disown()
        for user in _users.keys():
            user.detach(attachment)
    notes.forget()
    for user in _users.keys():
        user.forked()
    # Another copy of this package closes its own descriptors, when it notices.
    if Members.forget_all():
        for directory in _directories:
            close_inherited(directory)
    _at_fork = None
    _here[()] = 1.0


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
