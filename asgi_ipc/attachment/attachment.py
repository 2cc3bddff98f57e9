"""A process's presence in a segment: one for each prefix, shared by its layers and threads.

It brings together what the layers below keep apart: the segment, the store in it, the lock around
it, and the doorbells. `section` runs an operation of the store under the lock; `ring` wakes whom
an operation picked; `upkeep` is what somebody has to do about once a second: see whether the
segment is still there, bury the dead, let messages expire.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from ..errors import IncompatibleSegment, IPCError, LockTimeout, Reentered, SegmentVanished
from ..segment.doorbell import ALL, Doorbell, Ringer
from ..segment.files import Members, open_file
from ..segment.lock import (
    FileLock,
    Mutex,
    Section,
    init_mutex,
    make_section,
    make_section_of_three,
    process_of,
    spread,
)
from ..segment.segment import Segment, Wanted, attach, full_prefix
from ..store import recovery
from ..store.groups import Groups
from ..store.layout import (
    BUFFER,
    CLEAN,
    EXPIRED,
    FLUSHING,
    H_LOCK,
    LOCK_MUTEX,
    MAX_PROCESSES,
    MAX_WAITERS,
    P_GENERATION,
    P_PID,
    PROCESS_WORDS,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_EPOCH,
    S_LIVE,
    S_SWEEP_AT,
    WORD,
)
from ..store.queues import Target
from ..store.store import Store
from .drops import DropLog
from .inbox import Inbox

logger = logging.getLogger("asgi_ipc")

STALE_BELL = 5.0  # seconds after which a doorbell of another segment is one of the dead
TIDY_EVERY = 10.0  # seconds between two looks for such
CHECK_EVERY = 1.0  # seconds between two looks at the segment's name and at who lives
SWEEP_EVERY = 1.0  # seconds between two rounds of upkeep in the store,
SWEEP_SOON = 0.1  # while messages wait, or the last round found something to clear up, and
SWEEP_HURRY = 0.002  # when it left something that could be cleared up at once
DRAINED_AT_ONCE = 128  # messages moved into an inbox in one section

# By prefix, or by provider where it is not shared memory.
_attachments: weakref.WeakValueDictionary[Any, Attachment] = weakref.WeakValueDictionary()
_everyone: weakref.WeakSet[Attachment] = weakref.WeakSet()  # those of removed segments too
_users: weakref.WeakSet[Any] = weakref.WeakSet()  # objects with a detach() method
_kept: dict[tuple[str, int], dict[str, Inbox]] = {}  # by prefix and nonce, see `_release`
_graveyard: list[tuple[Any, ...]] = []  # arguments of `_release` that are still to be run


class _Guard:
    """Held while this process attaches or lets go. Finalizers come at any time, also to a thread
    that holds it: they only try, and leave their work to the holder.

    As with `lock.section`, an exception out of a signal handler may come anywhere: whoever enters
    does so in a `try` whose `except` leaves again, and both can be done twice.
    """

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    def enter(self) -> None:
        if self._lock._is_owned() and _guarded(sys._getframe(2)):
            raise Reentered(
                "the layer was called by a signal handler or __del__ while the same thread was "
                "attaching it. Set a flag there, or use a thread"
            )
        self._lock.acquire()  # it may be ours already: an earlier call lost track of it

    def leave(self) -> None:
        """Let go of it, if this thread has it and no call further out needs it."""
        if not _guarded(sys._getframe(2)):
            while self._lock._is_owned():
                self._lock.release()

    def bury(self) -> None:
        """Release what finalizers left, unless somebody who will do it holds the guard."""
        try:
            while _graveyard and not self._lock._is_owned() and self._lock.acquire(False):
                while _graveyard:
                    _release(*_graveyard.pop())
                self.leave()
        except BaseException:
            self.leave()
            raise

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        self._lock.release()
        self.bury()


def _guarded(frame: FrameType | None) -> bool:
    """Whether a call at `frame` or further out has entered the guard."""
    codes = _found_or_made.__code__, _glance.__code__, _Guard.bury.__code__
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


_guard = _Guard()


class Attachment:
    """An attached segment. Get one with `attached`; it is released when nobody refers to it."""

    def __init__(
        self, wanted: Wanted, patience: float, timeout: float, flush: bool = False
    ) -> None:
        """`flush`: forget what is in the store without looking at it, which may be damaged."""
        make: Callable[[Wanted], tuple[Segment, int]] = getattr(wanted.provider, "attach", attach)
        self.segment, index = make(wanted)
        segment = self.segment
        self.prefix = wanted.prefix
        self.key = wanted.provider or wanted.prefix
        self.store = Store(segment.memory, segment.layout, segment.reserve)
        self.groups = Groups(self.store)
        self.log_drop = DropLog(wanted.prefix, self.store.dropped)
        # What an earlier attachment of this process to this segment had drained and not delivered.
        self.inboxes = _kept.get((wanted.prefix, segment.nonce), {})
        self.local = threading.local()  # the waiter of each blocking thread
        self.hubs: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._gone: list[list[Any]] = []  # arguments of `discard_local` that are still to be run
        self._orphans: list[tuple[int, int]] = []  # waiter ids whose thread or loop is gone
        self.bells: weakref.WeakSet[Doorbell] = weakref.WeakSet()
        self.broken: IPCError | None = None
        self._ringer = segment.ringer()
        # For the finalizers of waiters, which must not keep this object alive.
        self.give_back = partial(_give_back, self._ringer, self._orphans)
        self._warned = False
        self._check_at = self._tidy_at = 0.0
        self._counted = 0  # the counter when `_in_use` was listed
        self._in_use: list[int] = []  # see `_processes`
        self.due = 0.0  # time of the next upkeep
        self.lock: Mutex | FileLock
        if segment.lock_kind == LOCK_MUTEX:
            self.lock = Mutex(segment.memory, H_LOCK * WORD)
        else:
            path, mode = segment.paths.section_lock, segment.mode
            self.lock = FileLock(path, lambda: open_file(path, mode))
        self.section = self.make_section(patience, timeout)
        now = time.monotonic()
        try:
            if flush:
                self.flush(patience, timeout)
            row = self.store.process_row(index)
            while not self.section(self.store.bury, row, now, 0.0):
                pass  # a dead process had this id before
            self.process = self.section(self.store.attach, index, os.getpid(), os.geteuid(), now)
        except BaseException:
            segment.leave(index)
            raise
        _kept.pop((wanted.prefix, segment.nonce), None)
        _everyone.add(self)
        self._finalizer = weakref.finalize(
            self,
            _to_release,
            segment,
            self.store,
            self.lock,
            self._ringer,
            self.inboxes,
            index,
            self.process,
            os.getpid(),
            self.log_drop,
        )

    # -- sections ---------------------------------------------------------------------------------

    def make_section(
        self, patience: float, timeout: float, recover: Callable[[], None] | None = None
    ) -> Section:
        """A section that waits `patience` seconds for the lock; see `lock`."""
        return spread(self.make_section_of_three(patience, timeout, recover))

    def make_section_of_three(
        self, patience: float, timeout: float, recover: Callable[[], None] | None = None
    ) -> Section:
        me = weakref.ref(self)
        segment, store, lock = self.segment, self.store, self.lock

        def recover_and_ring() -> None:
            recovery.recover(store, time.monotonic())
            attachment = me()
            if attachment is not None:
                attachment.ring_everyone()

        def renew(holder: int) -> bool:
            return isinstance(lock, Mutex) and _renew(segment, lock, holder)

        recover = recover or recover_and_ring
        return make_section_of_three(lock, store.words, recover, patience, renew, timeout)

    def flush(self, patience: float, timeout: float) -> None:
        """Forget all messages and groups, also in a store that recovery gives up on."""
        section = self.make_section(patience, timeout, recover=lambda: None)
        section(self._flush)
        self.ring_everyone()

    def _flush(self) -> None:
        """Inside a section."""
        self.store.words[S_DIRTY] = FLUSHING
        self.segment.mend()
        recovery.flush(self.store, time.monotonic())

    # -- wakeups ----------------------------------------------------------------------------------

    def ring(self, row: int, waiter: int) -> None:
        """Wake the waiter that was picked for the queue at `row`, or the next one if it is gone."""
        generation_of, ring = self.store.waiter_generation, self._ringer.ring
        try:
            while waiter > 0:
                generation = generation_of(waiter)
                if generation and ring(waiter, generation, row):
                    return
                waiter = self.section(self._pick_another, row, waiter, generation)
        except LockTimeout:
            # The message is there already: that the lock is busy must not look like a failed send.
            # Whoever waits then finds it by its own safety check.
            pass

    def _pick_another(self, row: int, waiter: int, generation: int) -> int:
        if generation and self.store.waiter_generation(waiter) == generation:
            self.store.remove_waiter(waiter, generation)
        return self.store.pick(row)

    def pass_on(self, row: int) -> None:
        """A ring for the queue at `row` came to somebody who has no use for it."""
        with contextlib.suppress(LockTimeout):
            waiter = self.section(self.store.pick_if_pending, row)
            if waiter:
                self.ring(row, waiter)

    def ring_everyone(self) -> None:
        """After recovery or a flush the waiter sets are empty: all have to look and park anew."""
        _ring_everyone(self.store, self._ringer)

    def new_bell(self, section: Section) -> tuple[int, int, Doorbell] | None:
        """A waiter id with its open doorbell: (id, generation, bell); None if ids ran out."""
        self._free_orphans(section)
        taken = section(self.store.add_waiter, self.process)
        if taken is None:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "prefix %r: all %d waiter ids are in use; this thread or loop looks for "
                    "messages every 50 ms instead of being woken",
                    self.prefix,
                    MAX_WAITERS - 1,
                )
            return None
        waiter, generation = taken
        try:
            bell = self.segment.new_bell(waiter, generation)
            self.bells.add(bell)
            section(self.store.publish_waiter, waiter, generation)
        except BaseException as error:
            with contextlib.suppress(LockTimeout):
                section(self.store.remove_waiter, waiter, generation)
            if isinstance(error, FileNotFoundError):
                self._check_vanished()
            raise
        return waiter, generation, bell

    def _free_orphans(self, section: Section) -> None:
        """Give back the waiter ids of threads and loops that ended. Bits that are still set are
        passed over by those who meet them."""
        while True:
            try:
                orphan = self._orphans.pop()
            except IndexError:
                return
            try:
                section(self.store.remove_waiter, *orphan)
            except BaseException:
                self._orphans.append(orphan)
                raise

    def retire_hubs(self) -> None:
        """Let go of the waiters of loops that were closed."""
        for loop, hub in _listed(self.hubs.items()):
            if hub.closed():
                self.hubs.pop(loop, None)
                hub.retire()

    def _remove_stale_bells(self) -> None:
        """Unlink doorbells that were left behind by the dead."""
        store, folder = self.store, self.segment.paths.directory
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                nonce, _, rest = name.partition(".")
                waiter, _, generation = rest.partition(".")
                if not (waiter.isdigit() and generation.isdigit()):
                    continue
                path = os.path.join(folder, name)
                if nonce == f"{self.segment.nonce:016x}" and int(waiter) < MAX_WAITERS:
                    stale = store.waiter_taken(int(waiter)) != int(generation)
                else:
                    stale = time.time() - os.lstat(path).st_ctime > STALE_BELL
                if stale:
                    os.unlink(path)

    # -- process-specific queues ------------------------------------------------------------------

    def inbox(self, queue: str) -> Inbox:
        found = self.inboxes.get(queue)
        return found if found is not None else self.inboxes.setdefault(queue, Inbox(queue))

    def fresh(self, inbox: Inbox) -> Inbox:
        """Inside a section: the inbox, emptied if there was a flush since it was filled."""
        epoch = self.store.words[S_EPOCH]
        if inbox.epoch != epoch:
            inbox.clear()
            inbox.epoch = epoch
        return inbox

    def is_fresh(self, inbox: Inbox) -> bool:
        """Whether nothing was flushed since it was filled. Only a section empties it (`fresh`)."""
        return inbox.epoch == self.store.words[S_EPOCH]

    def drain(self, row: int, inbox: Inbox, capacity: Callable[[str], int], now: float) -> None:
        """Inside a section: move what waits in the queue at `row` into its inbox."""
        store = self.store
        self.fresh(inbox)
        for _ in range(DRAINED_AT_ONCE):
            taken = store.peek(row)
            if taken is None:
                return
            if taken.expires <= now:
                store.drop_expired(row, now)  # or it would take the place of one that lives
                continue
            full = inbox.feed(taken, capacity)
            if full:
                store.count_drop(row, BUFFER, len(full), full[0])
            store.pop(row)

    # -- upkeep -----------------------------------------------------------------------------------

    def upkeep(self, now: float, expiry: float, section: Section) -> None:
        """Do what is due. Raises SegmentVanished when the segment's name is gone."""
        doubles = self.store.doubles
        if self.broken is not None:
            raise self.broken
        if now >= self._check_at:
            self._check_at = now + CHECK_EVERY
            self._check_vanished()
            self.retire_hubs()
            if self._orphans:
                self._free_orphans(section)
            for inbox in list(self.inboxes.values()):
                if inbox and not self.is_fresh(inbox):
                    section(self.fresh, inbox)
                if inbox:
                    self._expire_inbox(inbox, now, section)
            # One process looks after the dead for all.
            if not now < doubles[S_BURY_AT] <= now + CHECK_EVERY:
                doubles[S_BURY_AT] = now + CHECK_EVERY
                if not self._bury_the_dead(now, expiry, section):
                    doubles[S_BURY_AT] = self._check_at = now + SWEEP_HURRY
        self.store.note_peak()
        if not now < doubles[S_SWEEP_AT] <= now + SWEEP_EVERY:
            doubles[S_SWEEP_AT] = now + section(self._sweep, now)
        self.due = min(self._check_at, now + SWEEP_SOON, doubles[S_SWEEP_AT])
        if self.store.dropped:
            self.log_drop.tell()

    def _check_vanished(self) -> None:
        """Raise SegmentVanished if that is what happened; the next call then attaches anew."""
        if self.broken is None and self.segment.vanished():
            self.broken = SegmentVanished(
                f"the shared memory of prefix {self.prefix!r} was removed while this process was "
                "attached (somebody's rm, or systemd's RemoveIPC=yes at a logout). What was in it "
                "is lost; the next call makes it anew"
            )
        if self.broken is not None:
            forget(self)
            raise self.broken

    def _sweep(self, now: float) -> float:
        """Inside a section: a round of upkeep in the store; the seconds until the next."""
        store = self.store
        waiting = store.words[S_LIVE]
        before = store.members.used, store.queues.used
        self.groups.sweep(now, 16)
        if store.sweep(now):
            return SWEEP_HURRY
        found = before != (store.members.used, store.queues.used)
        return SWEEP_SOON if waiting or found else SWEEP_EVERY

    def alive(self, process: int) -> bool:
        """Whether the process of a row still holds its byte."""
        if process == self.process:
            return True
        index = (process - self.store.layout.processes) // PROCESS_WORDS
        if self.segment.members.held(index):
            return True
        # Another attachment of this very process: the kernel does not report one's own locks.
        return self.store.words[process + P_PID] == os.getpid() and (
            index in self.segment.members.claimed
        )

    def _bury_the_dead(self, now: float, expiry: float, section: Section) -> bool:
        """Clear up after processes that died; False if there is more to do at once."""
        done = True
        for process in self._processes():
            if self.store.words[process + P_GENERATION] and not self.alive(process):
                done = section(self.store.bury, process, now, expiry) and done
                self._tidy_at = now
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_EVERY
            self._remove_stale_bells()
        return done

    def _processes(self) -> list[int]:
        """The rows that are in use. All are looked through only after something was counted, as
        with everybody who attaches: an idle layer has other things to do."""
        words = self.store.words
        counted = words[S_COUNTER]
        if counted != self._counted:
            # Whoever counted may still be writing its row: then the next look is another one.
            self._counted = counted if words[S_DIRTY] == CLEAN else 0
            first = self.store.layout.processes + P_GENERATION
            last = first + MAX_PROCESSES * PROCESS_WORDS
            generations = words[first:last:PROCESS_WORDS].tolist()
            row_of = self.store.process_row
            self._in_use = [row_of(index) for index, used in enumerate(generations) if used]
        return self._in_use

    def claim(self, row: int, now: float, expiry: float) -> int:
        """Inside a section: make this process the owner of the queue at `row`; 0, or the pid of
        the living process that owns it."""
        owner = self.store.own(row, self.process)
        if owner and not self.alive(owner):
            self.store.bury(owner, now, expiry)
            owner = self.store.own(row, self.process)
        return self.store.words[owner + P_PID] if owner else 0

    def _expire_inbox(self, inbox: Inbox, now: float, section: Section) -> None:
        """Whoever left a message unread for its whole life has gone: end its memberships."""
        section(self._drop_expired, inbox, now)
        while self._gone:
            # Until it is done: the lock may be busy in between.
            gone = self._gone[-1]
            gone[3] = section(self.groups.discard_local, *gone)
            if not gone[3]:
                with contextlib.suppress(ValueError):  # another thread was quicker
                    self._gone.remove(gone)

    def _drop_expired(self, inbox: Inbox, now: float) -> None:
        """Inside a section: take out of an inbox what nobody read in time, and note who is gone."""
        expired = [local for local, _ in inbox.expire(now)]
        if not expired:
            return
        target = Target(inbox.queue.encode("ascii"))
        row = self.store.count_taken(target, EXPIRED, len(expired), expired[0])
        if row:
            gone = {local.encode("ascii") for local in expired}
            self._gone.append([row, target.generation, gone, 0])


def attached(wanted: Wanted, patience: float, timeout: float, flush: bool = False) -> Attachment:
    """This process's attachment to a prefix, made if there is none.

    The lock is waited for as `lock.make_section` says. `flush`: see `Attachment`, if one is made.
    """
    if wanted.provider is None:
        wanted = wanted._replace(prefix=full_prefix(wanted.prefix))
    try:
        return _found_or_made(wanted, patience, timeout, flush)
    finally:
        _guard.bury()


def _found_or_made(wanted: Wanted, patience: float, timeout: float, flush: bool) -> Attachment:
    key = wanted.provider or wanted.prefix
    try:
        _guard.enter()
        found = _attachments.get(key)
        if found is not None and (found.broken is not None or found.segment.vanished()):
            # Layers that were made before find out for themselves, and say so.
            found = None
        if found is None:
            found = _attachments[key] = Attachment(wanted, patience, timeout, flush)
        elif found.segment.lock_kind != wanted.lock_kind:
            raise IncompatibleSegment(
                f"prefix {wanted.prefix!r}: this process uses it already, with another lock= option"
            )
        else:
            found.segment.warn_of_mode(wanted)
            layout = found.segment.layout
            sizes = (layout.message_memory, layout.group_memory, layout.max_message_size)
            if sizes != wanted[1:4]:
                logger.warning(
                    "prefix %r: this process uses it already, with message_memory %d, "
                    "group_memory %d, max_message_size %d; they hold for all",
                    wanted.prefix,
                    *sizes,
                )
        _guard.leave()
    except BaseException:
        _guard.leave()
        raise
    return found


def holders(members: str) -> dict[int, int]:
    """Who is attached, read from the file of byte locks at `members`: index → process id."""
    try:
        return _glance(members)
    finally:
        _guard.bury()


def _glance(members: str) -> dict[int, int]:
    try:
        _guard.enter()
        found = Members.glance(members)
        _guard.leave()
    except BaseException:
        _guard.leave()
        raise
    return found


def forget(attachment: Attachment) -> None:
    """The next call of every layer of this process attaches anew."""
    with contextlib.suppress(KeyError):
        if _attachments.get(attachment.key) is attachment:
            del _attachments[attachment.key]
    for user in _listed(_users):
        user.detach(attachment)


def forget_all() -> list[Attachment]:
    """The same for all prefixes: what the environment adds to them changes. Returns what was in
    use."""
    found = list(_attachments.values())
    for attachment in found:
        forget(attachment)
    return found


def _ring_everyone(store: Store, ringer: Ringer) -> None:
    for waiter in range(1, MAX_WAITERS):
        generation = store.waiter_generation(waiter)
        if generation:
            ringer.ring(waiter, generation, ALL)


def _give_back(
    ringer: Ringer, orphans: list[tuple[int, int]], bell: Doorbell, waiter: int, generation: int
) -> None:
    """A waiter ends: close its bell now, and free its id with the next upkeep."""
    bell.close()
    ringer.forget(waiter)
    orphans.append((waiter, generation))


def register(user: Any) -> None:
    """Let `user` know, by `detach(attachment)`, when an attachment must not be used any more, and
    by `forked()` that it has become another process's."""
    _users.add(user)


def _listed(things: Any) -> list[Any]:
    """A list of what other threads, or finalizers, may add to or take from meanwhile."""
    while True:
        try:
            return list(things)
        except RuntimeError:
            continue


def _to_release(*what: Any) -> None:
    _graveyard.append(what)
    _guard.bury()


def _release(
    segment: Segment,
    store: Store,
    lock: Mutex | FileLock,
    ringer: Ringer,
    inboxes: dict[str, Inbox],
    index: int,
    process: int,
    pid: int,
    log_drop: DropLog,
) -> None:
    """Leave a segment: clear up what is ours in it, and close everything."""
    if pid != os.getpid():
        return  # forked by something that runs no fork handlers: this is the parent's
    now = time.monotonic()
    log_drop.tell()
    for name, kept in list(_kept.items()):
        if name[0] == segment.paths.prefix or not any(inbox.lives(now) for inbox in kept.values()):
            del _kept[name]
    if any(inbox.lives(now) for inbox in inboxes.values()):
        _kept[segment.paths.prefix, segment.nonce] = inboxes
    with contextlib.suppress(IPCError, OSError):

        def recover() -> None:
            recovery.recover(store, now)
            _ring_everyone(store, ringer)

        section = make_section(
            lock,
            store.words,
            recover,
            1.0,
            lambda holder: False,
            1.0,
        )
        section(store.leave, process, now)
    ringer.close()
    segment.leave(index)
    if isinstance(lock, FileLock):
        lock.close()
    store.close()


def _renew(segment: Segment, lock: Mutex, holder: int) -> bool:
    """Make the mutex anew if its holder is dead; `holder` 0 means that it cannot be recovered.

    A death that the kernel did not report happens: before Linux 5.18 the OOM killer's victims
    leave their robust mutexes behind. Who lives is the kernel's word: a thread of that id, in a
    process that holds one of the bytes (which it does before it ever takes the lock).
    """
    if holder and _thread_exists(holder):
        pid = process_of(holder)
        if not pid or pid == os.getpid() or pid in segment.members.pids():
            return False
    with segment.exclusively():
        if holder:
            if lock.holder() == holder:
                init_mutex(segment.memory, H_LOCK * WORD)
            return True  # or somebody else was quicker
        if lock.lost():  # and not made anew by somebody who was quicker
            init_mutex(segment.memory, H_LOCK * WORD)
    return True


def _thread_exists(thread: int) -> bool:
    try:
        os.kill(thread, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _before_fork() -> None:
    _guard.before_fork()


def _after_fork_in_parent() -> None:
    _guard.after_fork()


def _after_fork_in_child() -> None:
    """A child has no part in its parent's presence: it attaches for itself when it first calls."""
    global _guard
    _guard = _Guard()
    for attachment in _listed(_everyone):
        if attachment._finalizer.detach() is None:
            continue
        if isinstance(attachment.lock, FileLock):
            attachment.lock.close()  # or the child would hold what its parent held
        attachment._ringer.close()
        for bell in list(attachment.bells):
            bell.forget()
        with contextlib.suppress(OSError):
            os.close(attachment.segment.fd)
        attachment.broken = IncompatibleSegment("this attachment belongs to the parent process")
        for user in _listed(_users):
            user.detach(attachment)
    _attachments.clear()
    _kept.clear()
    _graveyard.clear()
    for user in _listed(_users):
        user.forked()
    Members.forget_all()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
