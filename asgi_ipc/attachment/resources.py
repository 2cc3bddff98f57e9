"""What an attachment holds of the operating system and of the store, and how that is released.

It is apart from `Attachment`, and must not refer to it: a finalizer of the attachment releases it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

from .. import clock
from ..errors import IPCError, LockTimeout, SegmentError
from ..segment.doorbell import ALL
from ..segment.files import DescriptorsLost
from ..segment.identity import Word, wiped_word
from ..segment.lock import FileLock, Mutex, open_lock
from ..segment.procfs import is_dead, process_of, shows_threads
from ..segment.section import (
    Section,
    SectionOfThree,
    Waits,
    make_section,
    make_section_of_three,
)
from ..segment.segment import Segment
from ..store import native, recovery
from ..store.layout import MAX_WAITERS, P_GENERATION, P_PID, PROCESS_WORDS
from ..store.store import Store
from .drops import DropLog
from .inbox import Inbox

_RENEWAL = 0.01  # seconds to wait for processes that attach; an event loop waits, too


class Resources:
    """An open segment: the store in it, its lock, what rings its waiters, and the row of this
    process, which has claimed the byte at `index`."""

    process = 0  # the row, once `enter` has made it
    _generation = 0
    _closed = False

    def __init__(self, prefix: str, segment: Segment, index: int, lock: Mutex | FileLock) -> None:
        self.prefix = prefix
        self.segment = segment
        self.lock = lock
        # When upkeep is due. In a child that was forked in C it reads 0, so that upkeep is due,
        # which notices the fork before anything of the parent is used.
        self.due_word = wiped_word()
        reserve = partial(_reserve, segment, self.due_word)
        self.store = Store(segment.memory, segment.layout, reserve, segment.shortage)
        self.compiled = _compiled(segment, self.store, lock, self.due_word)
        self.ringer = segment.ringer()
        self.log_drop = DropLog(prefix, self.store.dropped)
        self.inboxes: dict[str, Inbox] = {}
        self.identity = segment.paths.prefix, segment.nonce
        self.pid = os.getpid()
        self._index = index

    def enter(self, section: Section, now: float) -> None:
        """Make the row of this process, after clearing up what a dead process left in it."""
        store, index = self.store, self._index
        row = store.process_row(index)
        while not section(store.bury, row, now, 0.0):
            pass
        self.process = section(store.attach, index, self.pid, os.geteuid(), now)
        self._generation = store.words[self.process + P_GENERATION]

    def adopt(self, inboxes: dict[str, Inbox]) -> None:
        """Take over the inboxes of an earlier attachment of this process."""
        for inbox in inboxes.values():
            inbox.enter(self.store)
        self.inboxes.update(inboxes)

    def is_alive(self, process: int) -> bool:
        """Whether the process of a row still holds its byte."""
        if process == self.process:
            return True
        members = self.segment.members
        index = (process - self.store.layout.processes) // PROCESS_WORDS
        if members.held(index):
            return True
        # Another attachment of this process: the kernel does not report a process its own locks.
        return self.store.words[process + P_PID] == self.pid and index in members.claimed

    # -- sections ---------------------------------------------------------------------------------

    def make_section_of_three(
        self, waits: Waits, recover: Callable[[], None] | None = None
    ) -> SectionOfThree:
        """Return a section for operations of three arguments. `recover` is called when the store is
        dirty, in place of `recovery.recover`."""
        recover = recover or self._recover
        return make_section_of_three(self.lock, self.store.words, recover, waits, self.renew_lock)

    def _recover(self) -> None:
        recovery.recover(self.store, clock.monotonic())
        self.ring_everyone()

    def ring_everyone(self) -> None:
        """Wake all waiters. Recovery and flush empty the waiter sets: all have to park again."""
        for waiter_id in range(1, MAX_WAITERS):
            generation = self.store.waiter_generation(waiter_id)
            if generation:
                self.ringer.ring(waiter_id, generation, ALL)

    def renew_lock(self, holder: int) -> bool:
        """Free the mutex of a dead `holder`; 0 means that it cannot be recovered. Returns whether
        to try it again.

        Some deaths are not reported: before Linux 5.18, victims of the OOM killer leave their
        robust mutexes locked. No living thread can take such a mutex. So if the mutex still
        names a thread after that was found dead, under the flock, nobody else renews or takes it
        meanwhile.
        """
        if not isinstance(self.lock, Mutex) or (holder and self._may_live(holder)):
            return False
        try:
            with self.segment.exclusively(_RENEWAL):
                if not holder:
                    self.lock.restore()
                elif not self._may_live(holder):  # it may have ended, and its id be reused
                    self.lock.report_death(holder)
        except LockTimeout:
            return not holder  # others attach, or verify the segment: later
        return True

    def _may_live(self, holder: int) -> bool:
        """Whether a thread that the mutex names may be alive. If not, that is certain.

        If its id has been given to a thread of another program meanwhile, the holder is dead, too:
        a holder of the mutex has the segment in its memory. If the id has been given to a thread of
        this process, this process can tell. A thread that this process may not inspect counts
        as alive.
        """
        if is_dead(holder):
            return False
        pid = process_of(holder)
        if pid == os.getpid() and shows_threads():
            return self.lock.held_by(holder)
        return (
            not shows_threads()
            or not pid
            or pid in self.segment.members.pids()
            or self.segment.may_be_mapped_by(holder)
        )

    # -- leaving ----------------------------------------------------------------------------------

    def release(self) -> None:
        """Leave the segment: clear up what this process has in it, and close everything."""
        self.log_drop.tell(later=True)
        if not self._closed:
            with contextlib.suppress(IPCError, OSError):
                with contextlib.suppress(DescriptorsLost):  # the memory is still mapped
                    self.segment.check_length()
                section = make_section(self.lock, self.store.words, self._recover, Waits(1.0, 1.0))
                section(self._leave)
        # Unless `_leave` did it. It comes before others see this process as gone: one that attaches
        # alone makes the lock new, and a daemon thread may be in the middle of a change.
        self._close()
        self.ringer.close()
        self.segment.leave(self._index)
        self.lock.close()

    def _leave(self) -> None:
        """Inside a section: another thread may still call, as at exit, but never in the middle of
        a change. Its next section finds the memory released."""
        if self.store.words[self.process + P_GENERATION] == self._generation:
            self.store.leave(self.process, clock.monotonic())
        # Otherwise it lost its byte lock, others took it for dead, and the row may be another's.
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if self.compiled is not None:
                self.compiled.close()
            self.store.close()

    def disown(self) -> None:
        """In a forked child: close what belongs to the parent, and do not touch the segment."""
        self.lock.close()  # or the child would hold the lock while its parent does
        self.ringer.close()
        self.segment.close()


def _reserve(segment: Segment, due: Word, offset: int, length: int) -> bool:
    """For the store, which must not refer to `Resources`."""
    try:
        return segment.reserve(offset, length)
    except SegmentError:
        due[()] = 0.0  # the next call is to attach again
        raise


def _compiled(
    segment: Segment, store: Store, lock: Mutex | FileLock, due: Word
) -> native.Memory | None:
    """The memory of a segment for the compiled path; None if that is not used."""
    if not native.LOADED or not isinstance(lock, Mutex):
        return None
    if not isinstance(due, memoryview):
        return None  # it could not see a fork
    layout = segment.layout
    return native.Memory(
        segment.memory,
        store.turn,
        due,
        vars(clock),
        layout.queues.base,
        layout.queues.end,
        layout.log,
        layout.log_end,
        layout.max_live,
    )


def lock_of(segment: Segment) -> Mutex | FileLock:
    """The lock of a segment."""
    path = segment.paths.section_lock
    return open_lock(segment.lock_kind, segment.memory, path, segment.mode, segment.group)


def close_inherited(directory: str) -> None:
    """In a forked child: close what is still open of the files in `directory`.

    Another thread of the parent was just opening them, and no object knew their descriptors yet.
    """
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        device, files = os.stat(directory).st_dev, {entry.inode() for entry in entries}
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):
                status = os.fstat(int(name))
                if status.st_dev == device and status.st_ino in files:
                    os.close(int(name))
