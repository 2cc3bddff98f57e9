"""The attachment of this process to a segment: what its layers and threads ask of it.

It brings together what lower modules keep apart: the store, the section that runs an operation of
it under the lock, the doorbells that wake waiters, the inboxes, and the upkeep. This module must
not know which attachments there are (`process`), nor how a receive waits.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Callable
from functools import partial

from .. import clock
from ..errors import (
    CorruptHeader,
    ForeignSegment,
    IncompatibleSegment,
    IPCError,
    LockTimeout,
    SegmentError,
    SegmentVanished,
)
from ..segment.doorbell import Doorbell, Ringer
from ..segment.files import DescriptorsLost
from ..segment.notes import tell
from ..segment.notes import waiting as untold
from ..segment.section import LEFT, Section, SectionOfThree, Waits, spread
from ..store import recovery
from ..store.groups import Groups
from ..store.layout import FLUSHING, MAX_WAITERS, P_PID, S_DIRTY
from .inbox import Inbox
from .resources import Resources
from .unchanged import Unchanged
from .upkeep import Hub, Upkeep
from .weak import WeakKeys

logger = logging.getLogger("asgi_ipc")

# Why a doorbell cannot be made, although the segment can be used: no inode or memory, no
# descriptor, no permission.
_NO_BELL = {
    *(errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}


class Inherited(IncompatibleSegment):
    """The attachment is the parent's, and this process a forked child; or it has lost its
    descriptors. The call begins again."""


class Attachment:
    """An attached segment. Get one with `process.attach`; it is released when nothing refers to
    it."""

    def __init__(
        self,
        resources: Resources,
        waits: Waits,
        on_vanished: Callable[[Attachment], None],
        flush: bool = False,
    ) -> None:
        """`flush`: discard the content of the store, which may be damaged, without reading it.
        `on_vanished(self)` is called when the segment was removed."""
        self._resources = resources
        self._ringer = resources.ringer
        self._on_vanished = on_vanished
        self._warned = False
        self.broken: IPCError | None = None  # why it must not be used any more
        self.ended = False  # whether to release it, even if something refers to it
        self.detached = False  # whether layers have been told to attach again
        self.due_word = resources.due_word  # holds `due`
        self.prefix = resources.prefix
        self.segment = resources.segment
        self.store = resources.store
        self.compiled = resources.compiled
        self.lock = resources.lock
        self.log_drop = resources.log_drop
        self.inboxes = resources.inboxes
        self.groups = Groups(self.store)
        self.local = threading.local()  # the waiter of each blocking thread
        self.hubs: WeakKeys[object, Hub] = WeakKeys()  # by event loop
        self.bells: WeakKeys[Doorbell, None] = WeakKeys()
        self.upkeep = Upkeep(resources, self.groups, self.hubs)
        self.unchanged = Unchanged(resources, self.upkeep, self.hubs, self.due_word)
        # For the finalizers of waiters, which must not keep this object alive.
        self.give_back = partial(_give_back, self._ringer, self.upkeep.orphans)
        self.section = self.make_section(waits)
        self.due_rings = self.store.rings
        if flush:
            self.flush(waits)
        resources.enter(self.section, clock.monotonic())
        self.process = resources.process

    @property
    def due(self) -> float:
        """Time of the next upkeep; every send and receive compares it with the clock. It has no
        upper bound: one more comparison would cost noticeable time, and no kernel sets this clock
        back. If something else did (libfaketime, setns), the next receive that waits does what is
        due."""
        return self.due_word[()]

    @due.setter
    def due(self, value: float) -> None:
        self.due_word[()] = value

    # -- sections ---------------------------------------------------------------------------------

    def make_section(self, waits: Waits, recover: Callable[[], None] | None = None) -> Section:
        """Return a section that waits for the lock as `waits` says."""
        return spread(self.make_section_of_three(waits, recover))

    def make_section_of_three(
        self, waits: Waits, recover: Callable[[], None] | None = None
    ) -> SectionOfThree:
        """The same for operations of three arguments, which is faster."""
        return self._resources.make_section_of_three(waits, recover)

    def flush(self, waits: Waits) -> None:
        """Discard all messages and groups, even in a store that recovery cannot repair."""
        self._check_usable(look=False)
        section = self.make_section(waits, recover=lambda: None)
        section(self._flush)
        self._resources.ring_everyone()

    def _flush(self) -> None:
        """Inside a section."""
        self.store.words[S_DIRTY] = FLUSHING
        self.segment.repair()
        recovery.flush(self.store, clock.monotonic())

    def disown(self) -> None:
        """In a forked child: release what belongs to the parent, and prevent its use."""
        for bell in self.bells.keys():
            bell.forget()
        self._resources.disown()
        self.broken = Inherited(
            "this attachment belongs to the parent process; the next call attaches again"
        )
        self.due = 0.0  # so that a call that was in progress notices

    def end(self) -> None:
        """The interpreter is ending: prevent further use."""
        self.broken = SegmentError(LEFT)
        self.ended = True
        self.due = 0.0  # so that calls of other threads notice

    def explain(self, error: Exception) -> Exception:
        """Return what to raise for `error`: at exit another thread may have released the memory."""
        return error if self.broken is None else self.why_broken()

    def why_broken(self) -> IPCError:
        """`broken` as a new exception: several threads must not raise the same one."""
        assert self.broken is not None
        return type(self.broken)(*self.broken.args)

    # -- wakeups ----------------------------------------------------------------------------------

    def ring(self, row: int, waiter_id: int) -> None:
        """Wake the waiter that was picked for the queue at `row`, or the next one if it is gone.
        `row` may also be the place of a set of senders."""
        generation_of, ring = self.store.waiter_generation, self._ringer.ring
        try:
            while waiter_id > 0:
                generation = generation_of(waiter_id)
                if generation and ring(waiter_id, generation, row):
                    break
                waiter_id = self.section(self._pick_another, row, waiter_id, generation)
            if untold:
                tell()
        except LockTimeout:
            # The message is in its queue: a busy lock must not look like a failed send. Receivers
            # find the message by their own safety check.
            pass
        except (SegmentError, ValueError) as error:
            if self.explain(error) is error:
                raise  # otherwise it was sent, and then this process left at exit

    def _pick_another(self, row: int, waiter_id: int, generation: int) -> int:
        """Inside a section: pick a waiter instead of one that is gone; 0 if there is none."""
        if generation and self.store.waiter_generation(waiter_id) == generation:
            self.store.remove_waiter(waiter_id, generation)
        store = self.store
        return store.pick_sender(row) if store.is_room(row) else store.pick_another(row)

    def ring_senders(self) -> None:
        """Ring the senders for which there is room now."""
        rings = self.due_rings
        while rings:
            try:
                place, waiter_id = rings.pop()
            except IndexError:
                return  # another thread was quicker
            self.ring(place, waiter_id)

    def pass_on(self, row: int) -> None:
        """Pass on a ring for the queue at `row`, or for a set of senders, that its waiter does not
        need."""
        with contextlib.suppress(LockTimeout):
            waiter_id = self.section(self.store.pick_if_pending, row)
            if waiter_id:
                self.ring(row, waiter_id)

    def new_bell(self, section: Section) -> tuple[int, int, Doorbell] | None:
        """Take a waiter id and open its doorbell: (id, generation, bell); None if ids ran out or no
        doorbell can be made."""
        self.upkeep.free_orphans(section)
        taken = section(self.store.add_waiter, self.process)
        if taken is None:
            self._warn_of_looking(f"all {MAX_WAITERS - 1} waiter ids are in use")
            return None
        waiter_id, generation = taken
        try:
            bell = self.segment.new_bell(waiter_id, generation)
            self.bells[bell] = None
            section(self.store.publish_waiter, waiter_id, generation)
        except BaseException as error:
            with contextlib.suppress(LockTimeout):
                section(self.store.remove_waiter, waiter_id, generation)
            if isinstance(error, (FileNotFoundError, PermissionError)):
                self._check_usable()
            if isinstance(error, OSError) and error.errno in _NO_BELL:
                self._warn_of_looking(f"cannot make a doorbell ({error.strerror})")
                return None
            raise
        return waiter_id, generation, bell

    def _warn_of_looking(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "prefix %r: %s; this thread or loop looks for messages every 50 ms instead of "
                "being woken",
                self.prefix,
                why,
            )

    # -- process-specific queues ------------------------------------------------------------------

    def inbox(self, queue: str) -> Inbox:
        """The inbox of a process-specific queue."""
        found = self.inboxes.get(queue)
        if found is None:
            found = self.inboxes.setdefault(queue, Inbox(queue, self.store))
        return found

    def claim_queue(self, row: int, now: float, expiry: float) -> int:
        """Inside a section: make this process the owner of the queue at `row`. Returns 0, or the
        pid of the living process that owns it."""
        owner = self.store.own(row, self.process)
        if owner and not self.is_alive(owner):
            self.store.bury(owner, now, expiry)
            owner = self.store.own(row, self.process)
        return self.store.words[owner + P_PID] if owner else 0

    def is_alive(self, process: int) -> bool:
        """Whether the process of a row is still attached."""
        return self._resources.is_alive(process)

    # -- upkeep -----------------------------------------------------------------------------------

    def do_upkeep(self, now: float, expiry: float, section: Section) -> None:
        """Do what is due. Raises what `_check_usable` does."""
        whole = self.upkeep.check_due(now)
        self._check_usable(whole)
        self.due = self.upkeep.run(now, expiry, section)
        if whole:
            self.unchanged.note(now)
        if self.store.dropped:
            self.log_drop.tell()
        if untold:
            tell()

    def is_usable(self) -> bool:
        """Whether a layer that attaches now can use it."""
        try:
            self.segment.check_length()
            return self.broken is None and not self.detached and not self.segment.vanished()
        except (SegmentError, ValueError):
            return False

    def _check_usable(self, look: bool = True) -> None:
        """Raise CorruptHeader if the segment was cut short; and, if it has to `look` at its name,
        SegmentVanished if it was removed, and ForeignSegment or IncompatibleSegment if this process
        changed its user or its clock and may no longer use it. The next call then attaches
        again."""
        try:
            if self.broken is None:
                self.segment.check_length()
            if look and self.broken is None and self.segment.vanished():
                self.broken = SegmentVanished(
                    f"the shared memory of prefix {self.prefix!r} was removed while this process "
                    "was attached (by somebody's rm, or by systemd's RemoveIPC=yes at a logout). "
                    "Its contents are lost; the next call creates a new segment"
                )
        except (CorruptHeader, ForeignSegment, IncompatibleSegment) as error:
            self.broken = error
        except DescriptorsLost as error:
            self.broken, self.ended = Inherited(*error.args), True
        except ValueError as error:
            raise self.explain(error) from None
        if self.broken is not None:
            self.due = 0.0  # so that the waiters of other threads notice
            self._on_vanished(self)
            raise self.why_broken()


def _give_back(
    ringer: Ringer, orphans: list[tuple[int, int]], bell: Doorbell, waiter_id: int, generation: int
) -> None:
    """A waiter ends: close its bell now, and free its id with the next upkeep."""
    bell.close()
    ringer.forget(waiter_id)
    orphans.append((waiter_id, generation))
