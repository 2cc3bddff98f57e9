"""How the many receives of one event loop share one doorbell. Must not know any particular loop.

A loop has one waiter id and one FIFO, however many of its tasks wait. A ring says for which queue
it is; the hub wakes the first receive that waits for that queue. When that one has taken its
message, the hub takes care of the others: if more messages are pending it wakes the next, otherwise
it parks the waiter again. A process-specific queue is drained in one go, and the hub wakes one
receive for each local part that got something.

While a receive waits, the hub is active: it watches its doorbell, and looks by itself once a
second, in case a sender was killed before it could ring. After a second without a receive it
releases the loop, so that nothing of it outlives a loop or an attachment.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from .. import clock
from ..attachment.inbox import Inbox, Mailbox, wake
from ..attachment.process import notice_fork
from ..errors import IPCError, LockTimeout
from ..segment.doorbell import ALL
from .session import Session
from .source import Source
from .spin import may_spin, spinning
from .waiter import Waiter

if TYPE_CHECKING:
    from .receiving import Receiving


AnyHub = TypeVar("AnyHub", bound="Hub")


class Timer(Protocol):
    """A call that a loop makes later."""

    def cancel(self) -> object: ...


class Sleep:
    """One receive that sleeps: a future of its loop, which any thread may wake."""

    __slots__ = ("future", "hub")  # assigned by the caller: an __init__ would take longer

    hub: Hub
    future: Any

    def wake(self) -> None:
        self.hub.resolve(self.future, None)

    def gone(self) -> bool:
        return self.hub.closed()


class Hub(Waiter):
    """The waiter of one loop. A subclass says how its loop watches, times and resolves."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._session: Session | None = None  # only while active, like the next
        self._core: Receiving | None = None  # the last that waited
        self._sleeping: dict[int, deque[Sleep]] = {}  # by queue row, or place of a set of senders
        # Process-specific queues: at each this waiter is parked, or a ring is under way to it.
        self._drains: dict[str, tuple[Receiving, Source]] = {}
        self._rows: dict[int, str] = {}  # and their names by row
        self.sleepers = 0  # how many receives of the loop wait
        self._spinning = False  # whether one of the loop's receives is
        self._epoch = 0  # of the last flush that is known here
        self._timer: Timer | None = None
        self.late_at = 0.0  # when the timer should have called long since
        self.late = False  # whether a receive has noticed that it did not

    # -- what a loop is asked for -----------------------------------------------------------------

    @abstractmethod
    def future(self) -> Any:
        """A new future of the loop."""

    @abstractmethod
    def closed(self) -> bool:
        """Whether the loop will never run again."""

    @abstractmethod
    def resolve(self, future: Any, error: BaseException | None) -> None:
        """Complete a future, from any thread. A second call does nothing."""

    def wake_fed(self, inbox: Inbox, fed: dict[Mailbox, None]) -> None:
        """Wake the receives that wait at mailboxes of an inbox that got something."""
        wake(inbox, fed)

    @abstractmethod
    async def sleep(self, future: Any, seconds: float) -> bool:
        """Await a future for at most `seconds`; False if these were over first."""

    @abstractmethod
    async def pause(self, seconds: float) -> None:
        """Sleep for `seconds`, while the loop continues."""

    @abstractmethod
    def watch(self) -> None:
        """Have `rung` called whenever the doorbell can be read."""

    @abstractmethod
    def unwatch(self) -> None:
        """End what `watch` began."""

    @abstractmethod
    def later(self, seconds: float) -> Timer:
        """Have `look` called after `seconds`."""

    # -- what a receive asks ----------------------------------------------------------------------

    def begin(self, session: Session, sources: list[Source], spin: float) -> bool:
        """One receive of the loop spins at a time."""
        return spin > 0 and not self._spinning and may_spin(sources, self._sees)

    async def spin(self, sources: list[Source], seconds: float, deadline: float | None) -> None:
        """Keep the loop awake meanwhile. Its other tasks continue, and with each turn of the loop
        other threads get the interpreter."""
        self._spinning = True
        try:
            for _ in spinning(sources, self._sees, seconds, deadline):
                await self.pause(0)
        finally:
            self._spinning = False

    def _sees(self, source: Source) -> bool:
        """A glance, without the lock: whether something is there that a receive could take."""
        # Where the loop is parked at the queue, the ring brings what is pending to the inbox.
        return source.buffered() or (source.queue not in self._drains and source.ready())

    def is_parked(self, source: Source) -> bool:
        return source.queue in self._drains

    async def wait(
        self, core: Receiving, session: Session, sources: list[Source], deadline: float | None
    ) -> bool:
        sleep = Sleep()
        sleep.hub, sleep.future = self, self.future()
        rows = []
        self.sleepers += 1
        try:
            ready = False
            for source in sources:
                if source.inbox is None:
                    row = source.place
                    self._sleeping.setdefault(row, deque()).append(sleep)
                    rows.append(row)
                    if source.sending is not None:
                        source.sending.join_senders(source.local, sleep)
                        ready = source.ready() or ready
                else:
                    if source.queue not in self._drains:
                        self._drains[source.queue] = core, source
                        self._rows[source.place] = source.queue
                    ready = source.inbox.join(source.local, sleep) or ready
            self._core = core
            if self._timer is None:
                self._activate(session)
            elif clock.monotonic() > self.late_at:
                # Set while the clock of the loop was replaced, it may never call.
                self._timer.cancel()
                self._set_timer()
            if ready:
                return True
            if deadline is not None:
                return await self.sleep(sleep.future, deadline - clock.monotonic())
            await sleep.future
            return True
        finally:
            self.sleepers -= 1
            for source in sources:
                if source.inbox is not None:
                    source.inbox.part(source.local, sleep)
                elif source.sending is not None:
                    source.sending.part_senders(source.local, sleep)
            for row in rows:
                sleeping = self._sleeping.get(row)
                if sleeping is not None:
                    if sleep in sleeping:
                        sleeping.remove(sleep)
                    if not sleeping:
                        del self._sleeping[row]

    def stays(self, source: Source) -> bool:
        return source.inbox is not None or source.place in self._sleeping

    def end(self, session: Session, source: Source) -> None:
        sleeping = self._sleeping.get(source.place) if source.inbox is None else None
        if sleeping and self.waiter_id:
            try:
                if session.section(source.park_again, session.store, self.waiter_id):
                    sleeping[0].wake()
            except LockTimeout:
                sleeping[0].wake()  # it parks for itself, once it can

    # -- called by the loop -----------------------------------------------------------------------

    def rung(self) -> None:
        """The doorbell can be read: wake the receives that the rings are for."""
        session = self._session
        if self.bell is None or session is None:
            return
        notice_fork()
        if session.attachment.broken is not None:
            self._failed(session.attachment.broken)
            return
        others = []
        for row in self.bell.answer():
            sleeping = self._sleeping.get(row)
            if sleeping and row != ALL:
                sleeping[0].wake()
            else:
                others.append(row)
        if others:
            try:
                self._rung_for(session, others)
            except (IPCError, ValueError) as error:
                self._failed(session.attachment.explain(error))

    def _rung_for(self, session: Session, rows: list[int]) -> None:
        """Answer rings for queues at which no single receive sleeps."""
        for row in rows:
            if row == ALL:
                # The waiter sets are empty: park again for process-specific queues, and wake the
                # rest, which park for themselves.
                self._drain_all(session)
                self._wake_all()
            elif row in self._rows:
                self._drain(session, self._rows[row])
            else:
                session.attachment.pass_on(row)

    def look(self) -> None:
        """About once a second: do the upkeep, look for messages without a ring, and become idle."""
        session, core = self._session, self._core
        self._timer = None
        if session is None or core is None:
            return
        if not self.sleepers:
            self._deactivate()
            return
        self._set_timer()
        try:
            if (
                self.waiter_id
                and session.attachment.unchanged.holds(self._held, 1)
                and not self._missed(session)
            ):
                return
            core.upkeep(session, clock.monotonic())
            if self._lost_bell(session):
                self.unwatch()
                self._renew_bell(session)
                if self.bell is not None:
                    self.watch()
                self._drain_all(session)
                self._wake_all()
            if self._epoch != session.epoch:
                # The process that flushed may have been killed before it rang.
                self._epoch = session.epoch
                self._rung_for(session, [ALL])
            # A receive that is woken may run at once, as with Twisted, and change all of these.
            for row in list(self._sleeping):
                sleeping = self._sleeping.get(row, ())
                if not row:  # waiter ids ran out, and there was no queue yet: each looks itself
                    for sleep in list(sleeping):
                        sleep.wake()
                elif sleeping and (not self.waiter_id or session.pending(row)):
                    sleeping[0].wake()  # without an id for any row
            for _, source in list(self._drains.values()):
                for waiting in source.inbox.overdue() if source.inbox is not None else ():
                    waiting.wake()
                if source.ready():
                    self._drain(session, source.queue)
        except (IPCError, ValueError) as error:  # another thread may release the memory, at exit
            self._failed(session.attachment.explain(error))

    def _missed(self, session: Session) -> bool:
        """Whether there may be a message that nobody rang for."""
        if self._epoch != session.epoch:
            return True
        for row in self._sleeping:
            if not row or session.pending(row):
                return True
        return any(source.ready() for _, source in self._drains.values())

    # -- inside -----------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        """Raise what is wrong with the segment in every receive that waits for it."""
        if not isinstance(error, IPCError):
            raise error
        if not isinstance(error, LockTimeout):
            self._wake_all(error)
            return
        self._wake_all()  # each tries again, and waits for the lock, itself
        self._drains.clear()
        self._rows.clear()

    def _drain_all(self, session: Session) -> None:
        for queue in list(self._drains):
            self._drain(session, queue)

    def _drain(self, session: Session, queue: str) -> None:
        """Move what a process-specific queue holds to its receives that wait, and park again."""
        if queue not in self._drains:
            return  # a receive that ran meanwhile released it
        core, source = self._drains[queue]
        fed = core.drain(session, source, self)
        if fed:
            assert source.inbox is not None
            self.wake_fed(source.inbox, fed)
        row = source.target.row
        if self._rows.get(row) != queue:
            # It got another row when it was flushed, or when its owner before us died.
            for before in [row for row, name in self._rows.items() if name == queue]:
                del self._rows[before]
            self._rows[row] = queue

    def _wake_all(self, error: IPCError | None = None) -> None:
        sleeps = {sleep for sleeping in self._sleeping.values() for sleep in sleeping}
        for _, source in self._drains.values():
            assert source.inbox is not None
            for receives in source.inbox.waiting.copy().values():
                for receive in receives.copy():
                    if isinstance(receive, Sleep) and receive.hub is self:  # not another loop's
                        sleeps.add(receive)
        for sleep in sleeps:
            self.resolve(sleep.future, None if error is None else type(error)(*error.args))

    def _activate(self, session: Session) -> None:
        self._session = session
        self._epoch = session.epoch
        if self.bell is not None:
            self.watch()
        self._set_timer()

    def _set_timer(self) -> None:
        every = self.look_every
        self.late_at, self.late = clock.monotonic() + 2 * every, False
        self._timer = self.later(every)

    def _deactivate(self) -> None:
        self.unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session, self._session, self._core = self._session, None, None
        rows, self._rows, self._drains = self._rows, {}, {}
        if session is None or session.attachment.broken is not None:
            return
        with contextlib.suppress(IPCError):
            for row in rows:
                session.section(session.store.unpark, row, self.waiter_id)
                session.attachment.pass_on(row)

    def drains(self, queue: str) -> bool:
        """Whether receives of the loop wait at a process-specific queue."""
        return queue in self._drains

    def retire(self) -> None:
        """The loop is closed: give its waiter id back, or rings for it would be lost."""
        self._return_bell()
        self._session = self._core = None
        self._drains.clear()
        self._rows.clear()

    def release(self) -> None:
        """The layer is closed: release the loop now, if no receive waits."""
        if not self.sleepers:
            self._deactivate()


def hub_of(
    session: Session, loop: Any, make: Callable[[Session, weakref.ref[Any]], AnyHub]
) -> AnyHub:
    """The hub of a loop, made when first needed. This also retires those of closed loops."""
    attachment = session.attachment
    found = cast("AnyHub | None", attachment.hubs.get(loop))
    if found is None:
        attachment.upkeep.retire_hubs()
        found = attachment.hubs[loop] = make(session, weakref.ref(loop))
    return found
