"""How the many receives of one event loop share one doorbell. Knows no particular loop.

A loop has one waiter id and one FIFO, however many of its tasks wait. A ring says for which queue
it is; the hub wakes the first receive that waits for that queue, and when that one has taken its
message it looks after the others: more messages wake the next, none parks the waiter again. A
process-specific queue is drained in one go, and each receive woken whose local part got something.

While anybody waits the hub is active: its doorbell is watched, and once a second it looks by
itself, in case whoever should have rung was killed before it could. Idle for a second it lets go
of the loop, so that nothing of it outlives a loop or an attachment.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from ..attachment.upkeep import CHECK_EVERY
from ..errors import IPCError, LockTimeout
from ..segment.doorbell import ALL, Doorbell
from ..store.layout import Q_PENDING, R_GENERATION, S_EPOCH
from .receiving import Receiving, Source
from .session import Session

_LOOK_EVERY = 0.05  # seconds between two looks where no doorbell is to be had


class Sleep:
    """One receive that sleeps: a future of its loop, which may be woken from any thread."""

    __slots__ = ("_hub", "future")

    def __init__(self, hub: Hub, future: Any) -> None:
        self._hub = hub
        self.future = future

    def wake(self) -> None:
        self._hub.resolve(self.future, None)

    def gone(self) -> bool:
        return self._hub.closed()


class Hub(ABC):
    """The waiter of one loop. A subclass says how its loop watches, times and resolves."""

    bell: Doorbell | None = None

    def __init__(self, session: Session) -> None:
        attachment = session.attachment
        self._give_back = attachment.give_back
        taken = attachment.new_bell(session.section)
        self.index, self._generation, self.bell = taken or (0, 0, None)
        self._session: Session | None = None  # only while active, as the next
        self._core: Receiving | None = None  # the last that waited
        self._sleeping: dict[int, deque[Sleep]] = {}  # by queue row
        # Process-specific queues: at each this waiter is parked, or a ring is under way to it.
        self._drains: dict[str, tuple[Receiving, Source]] = {}
        self._rows: dict[int, str] = {}  # and their names by row
        self._sleepers = 0
        self._spinning = False  # whether one of the loop's receives is
        self._epoch = 0  # of the last flush that is known here
        self._timer: Any = None

    def __del__(self) -> None:
        if self.bell is not None:
            self._give_back(self.bell, self.index, self._generation)

    @property
    def sleepers(self) -> int:
        """How many receives of the loop wait."""
        return self._sleepers

    # -- what a loop is asked for -----------------------------------------------------------------

    @abstractmethod
    def future(self) -> Any:
        """A new future of the loop."""

    @abstractmethod
    def closed(self) -> bool:
        """Whether the loop will never run again."""

    @abstractmethod
    def resolve(self, future: Any, error: BaseException | None) -> None:
        """Let a future go on, from any thread; a second time is no error."""

    @abstractmethod
    async def sleep(self, future: Any, seconds: float) -> bool:
        """Await a future for so many seconds; False when they were over first."""

    @abstractmethod
    async def pause(self, seconds: float) -> None:
        """Sleep while the lock is busy."""

    @abstractmethod
    def watch(self) -> None:
        """Call `rung` whenever the doorbell can be read."""

    @abstractmethod
    def unwatch(self) -> None:
        """Stop that."""

    @abstractmethod
    def later(self, seconds: float) -> Any:
        """Call `look` after so many seconds."""

    # -- spinning: see `spin` ---------------------------------------------------------------------

    def may_spin(self, sources: list[Source]) -> bool:
        """Whether a receive of `sources` is to spin: one of the loop's does at a time."""
        if self._spinning:
            return False
        for source in sources:
            if self._sees(source) or source.awaited():
                return False
        return sources[0].spin.due()

    async def spin(self, core: Receiving, sources: list[Source], deadline: float | None) -> None:
        """Keep the loop awake until something comes. All else that it has to do goes on, and with
        each turn of it other threads get the interpreter."""
        now = time.monotonic()
        until = now + core.spin
        end = until if deadline is None else min(until, deadline)
        hit, self._spinning = False, True
        try:
            while not hit and (now := time.monotonic()) < end:
                await self.pause(0)
                if any(map(Source.awaited, sources)):
                    return
                hit = any(map(self._sees, sources))
        finally:
            self._spinning = False
        if hit or now >= until:
            sources[0].spin.note(hit)

    def _sees(self, source: Source) -> bool:
        """A glance, without the lock: whether something is there that a receive could have."""
        # What is in a queue that the loop is parked at comes to the inbox with the ring.
        return source.holds() or (source.queue not in self._drains and source.stirs())

    # -- the waiter protocol ----------------------------------------------------------------------

    async def wait(
        self, core: Receiving, session: Session, sources: list[Source], deadline: float | None
    ) -> bool:
        sleep = Sleep(self, self.future())
        rows = []
        self._sleepers += 1
        try:
            ready = False
            for source in sources:
                row = source.target.row
                if source.inbox is None:
                    self._sleeping.setdefault(row, deque()).append(sleep)
                    rows.append(row)
                else:
                    if source.queue not in self._drains:
                        self._drains[source.queue] = core, source
                        self._rows[row] = source.queue
                    ready = source.inbox.join(source.local, sleep) or ready
            self._core = core
            if self._timer is None:
                self._activate(session)
            if ready:
                return True
            if deadline is not None:
                return await self.sleep(sleep.future, deadline - time.monotonic())
            await sleep.future
            return True
        finally:
            self._sleepers -= 1
            for source in sources:
                if source.inbox is not None:
                    source.inbox.part(source.local, sleep)
            for row in rows:
                sleeping = self._sleeping.get(row)
                if sleeping is not None:
                    if sleep in sleeping:
                        sleeping.remove(sleep)
                    if not sleeping:
                        del self._sleeping[row]

    def keeps(self, source: Source) -> bool:
        return source.inbox is not None or source.target.row in self._sleeping

    def awaits(self, source: Source) -> bool:
        return source.queue in self._drains

    def left(self, session: Session, source: Source) -> None:
        sleeping = self._sleeping.get(source.target.row) if source.inbox is None else None
        if sleeping and self.index:
            row = source.target.row
            try:
                if session.section(session.store.park_if_empty, row, self.index):
                    sleeping[0].wake()
            except LockTimeout:
                sleeping[0].wake()  # it parks for itself, once it can

    # -- called by the loop -----------------------------------------------------------------------

    def rung(self) -> None:
        """The doorbell can be read: wake whom the rings are for."""
        session = self._session
        if self.bell is None or session is None:
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
            except IPCError as error:
                self._failed(error)

    def _rung_for(self, session: Session, rows: list[int]) -> None:
        """What is to be done about rings for queues that no single receive sleeps at."""
        for row in rows:
            if row == ALL:
                # The waiter sets are empty: park anew, for whoever does not when it wakes.
                for queue in list(self._drains):
                    self._drain(session, queue)
                self._wake_all()
            elif row in self._rows:
                self._drain(session, self._rows[row])
            else:
                session.attachment.pass_on(row)

    def look(self) -> None:
        """The safety check, about once a second; and upkeep, and going idle."""
        session, core = self._session, self._core
        self._timer = None
        if session is None or core is None:
            return
        if not self._sleepers:
            self._deactivate()
            return
        self._timer = self.later(CHECK_EVERY if self.index else _LOOK_EVERY)
        try:
            core.upkeep(session, time.monotonic())
            if self.index and not session.store.is_waiter(self.index, self._generation):
                self._renew_bell(session)
            words = session.store.words
            if self._epoch != words[S_EPOCH]:
                # Whoever flushed may have been killed before it rang.
                self._epoch = words[S_EPOCH]
                self._rung_for(session, [ALL])
            for row, sleeping in list(self._sleeping.items()):
                if not row:  # waiter ids ran out, and there was no queue yet: each looks for itself
                    for sleep in list(sleeping):
                        sleep.wake()
                elif not self.index or words[row + Q_PENDING]:  # without an id also for another row
                    sleeping[0].wake()
            for row, queue in list(self._rows.items()):
                source = self._drains[queue][1]
                for waiting in source.inbox.overdue() if source.inbox is not None else ():
                    waiting.wake()
                target = source.target
                if words[row + R_GENERATION] != target.generation or words[row + Q_PENDING]:
                    self._drain(session, queue)
        except IPCError as error:
            self._failed(error)

    # -- inside -----------------------------------------------------------------------------------

    def _failed(self, error: IPCError) -> None:
        """What is wrong with the segment is raised in every receive that waits for it."""
        if not isinstance(error, LockTimeout):
            self._wake_all(error)
            return
        self._wake_all()  # each tries, and rides it out, for itself
        self._drains.clear()
        self._rows.clear()

    def _renew_bell(self, session: Session) -> None:
        """Nobody rings here any more: the doorbell was removed by hand, or its row damaged."""
        assert self.bell is not None
        self.unwatch()
        self._give_back(self.bell, self.index, self._generation)
        self.index, self.bell = 0, None
        taken = session.attachment.new_bell(session.section)
        if taken is not None:
            self.index, self._generation, self.bell = taken
            self.watch()
        for queue in list(self._drains):
            self._drain(session, queue)
        self._wake_all()

    def _drain(self, session: Session, queue: str) -> None:
        """Move what a process-specific queue holds to those who wait for it, and park anew."""
        core, source = self._drains[queue]
        core.drain(session, source, self)
        row = source.target.row
        if self._rows.get(row) != queue:
            # It has another row: since a flush, or since its owner before us died.
            for before in [row for row, name in self._rows.items() if name == queue]:
                del self._rows[before]
            self._rows[row] = queue

    def _wake_all(self, error: IPCError | None = None) -> None:
        sleeps = {sleep for sleeping in self._sleeping.values() for sleep in sleeping}
        for _, source in self._drains.values():
            assert source.inbox is not None
            for receives in list(source.inbox.waiting.values()):
                sleeps.update(receive for receive in receives if isinstance(receive, Sleep))
        for sleep in sleeps:
            self.resolve(sleep.future, None if error is None else type(error)(*error.args))

    def _activate(self, session: Session) -> None:
        self._session = session
        self._epoch = session.store.words[S_EPOCH]
        if self.bell is not None:
            self.watch()
        self._timer = self.later(CHECK_EVERY if self.index else _LOOK_EVERY)

    def _deactivate(self) -> None:
        self.unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session, self._session, self._core = self._session, None, None
        rows, self._rows, self._drains = self._rows, {}, {}
        if session is None:
            return
        with contextlib.suppress(IPCError):
            for row in rows:
                session.section(session.store.unpark, row, self.index)
                session.attachment.pass_on(row)

    def retire(self) -> None:
        """The loop is closed: nobody may be rung here any more, or the rings would be lost."""
        if self.bell is not None:
            self._give_back(self.bell, self.index, self._generation)
        self.bell, self.index = None, 0
        self._session = self._core = None
        self._drains.clear()
        self._rows.clear()

    def release(self) -> None:
        """The layer is closed: let go of the loop now, if nobody waits."""
        if not self._sleepers:
            self._deactivate()


def hub_of(session: Session, loop: Any, make: Any) -> Any:
    """The hub of a loop, made when first needed; those of closed loops are let go on the way."""
    attachment = session.attachment
    found = attachment.hubs.get(loop)
    if found is None:
        attachment.upkeep.retire_hubs()
        found = attachment.hubs[loop] = make(session, weakref.ref(loop))
    return found
