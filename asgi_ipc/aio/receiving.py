"""Receiving: the one thing that waits.

A receive first tries, and parks in the section that found nothing. Nothing is awaited between
taking a message out and returning it: cancelling a receive loses nothing and doubles nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..attachment.inbox import ANY, Drained, Entry, Inbox, Waiting
from ..codec import DecodeError, is_flat
from ..errors import InvalidName, LockBusy, LockTimeout, NotOwner
from ..names import check_channel, check_receive, split
from ..store.layout import EXPIRED, Q_PENDING, Q_WAITING, R_GENERATION, UNDECODABLE
from ..store.queues import Target
from .session import Base, Session
from .spin import Spin

logger = logging.getLogger("asgi_ipc")


class Waiter(Protocol):
    """Who waits for a core: a thread or an event loop, with a doorbell of its own."""

    index: int  # waiter id; 0 if ids have run out, and it has to look by itself

    async def wait(
        self, core: Receiving, session: Session, sources: list[Source], deadline: float | None
    ) -> bool:
        """Sleep until there may be something in one of `sources`; False at `deadline`."""

    async def pause(self, seconds: float) -> None:
        """Sleep while the lock is busy."""

    def keeps(self, source: Source) -> bool:
        """Whether another receive of this waiter waits for `source`, so that its bit must stay."""

    def awaits(self, source: Source) -> bool:
        """Whether this waiter is parked already at the process-specific queue of `source`."""

    def left(self, session: Session, source: Source) -> None:
        """A receive of this waiter waits for `source` no longer: others of its may still do, and
        the ring that it answered may have been for them."""


class LoopWaiter(Waiter, Protocol):
    """The waiter of an event loop."""

    def may_spin(self, sources: list[Source]) -> bool:
        """Whether a receive of `sources` is to spin before it parks."""

    async def spin(self, core: Receiving, sources: list[Source], deadline: float | None) -> None:
        """Keep the loop awake until something comes, no longer than ``spin`` seconds."""


class Source:
    """A channel as a receive names it: a queue, and for process-specific ones what part of it."""

    __slots__ = ("channel", "inbox", "local", "queue", "spin", "target")

    def __init__(self, channel: str, inbox: Inbox | None) -> None:
        self.queue, local = split(channel)
        self.channel = channel
        self.target = Target(self.queue.encode("ascii"))
        self.inbox = inbox
        self.local: str | None = local or ANY
        self.spin = Spin()

    def stirs(self) -> bool:
        """A glance, without the lock: whether something is in the queue, or it has to be looked up
        to know: it never was, or there was a flush since."""
        words = self.target.words
        return words[Q_PENDING] > 0 or words[R_GENERATION] != self.target.generation

    def awaited(self) -> bool:
        """The same: whether somebody is parked at a queue that is not process-specific. A sender
        rings for the next message, whoever takes it."""
        return self.inbox is None and self.target.words[Q_WAITING] > 0

    def holds(self) -> bool:
        """Whether something that was drained before is there for this source."""
        return self.inbox is not None and self.inbox.has(self.local)


class Receiving(Base):
    """The receiving half of a core."""

    def sources(self, session: Session, channels: Iterable[str]) -> list[Source]:
        """Look up what a receive names; process-specific channels only up to the ``!`` (A1)."""
        known: dict[str, list[Source]] = session.sources
        if type(channels) is not list:
            channels = _listed(channels)
        try:
            if len(channels) == 1:
                return known[channels[0]]
            found = [known[channel][0] for channel in channels]
        except (KeyError, TypeError):
            found = [self._source(session, check_receive(channel)) for channel in channels]
        if len(found) > 1:
            # Begin with another one each time: a busy channel never starves a quiet one (M9).
            self._turn = turn = (self._turn + 1) % len(found)
            found = found[turn:] + found[:turn]
        return found

    def exact_source(self, session: Session, channel: str) -> list[Source]:
        """What a receive of one full name takes from, as a list of one; looked up once."""
        check_channel(channel)
        found = [self._source(session, channel)]
        session.remember(session.exact_sources, channel, found)
        return found

    def _source(self, session: Session, channel: str) -> Source:
        queue = split(channel)[0]
        source = Source(channel, session.attachment.inbox(queue) if queue.endswith("!") else None)
        if source.local is ANY:
            session.remember(session.sources, channel, [source])
        return source

    def take(
        self,
        session: Session,
        sources: list[Source],
        waiter: Waiter | None = None,
        parked: bool = False,
    ) -> tuple[str, dict[str, Any]] | None:
        """Take one message out of `sources`: (channel, message), or None if there is none.

        With a waiter: park it, if there is none, in the section that saw so. `parked`: it may be
        parked in all of them from the last try; what is left of that goes when a message is taken.
        """
        first = sources[0]
        only = len(sources) == 1
        if only and first.inbox is None:
            taken = self.take_one(session, first, 0 if waiter is None else waiter.index)
            if taken is not None and parked:
                assert waiter is not None
                waiter.left(session, first)
            return taken
        now = time.monotonic()
        if now >= session.attachment.due:
            self.upkeep(session, now)
        if only and (not parked or waiter is None or waiter.keeps(first)):
            found = self._take_own(session, first, now)
            if found is not None:
                return found
        while True:
            found = self._take_any(session, sources, now, waiter, parked)
            if found is None:
                break
            source, channel, drained = found
            if parked:
                assert waiter is not None
                for waited_for in sources:
                    waiter.left(session, waited_for)
                parked = False
            try:
                return channel, self._message(drained)
            except DecodeError as error:
                self._undecodable(session, source, channel, drained.body, error.__context__)
        if session.store.dropped:
            session.attachment.log_drop.tell()
        return None

    def _take_own(
        self, session: Session, source: Source, now: float
    ) -> tuple[str, dict[str, Any]] | None:
        """`take` from what one process-specific queue was drained of before, where no bit has to be
        taken back. That is most of what a broadcast is for its sockets."""
        inbox = source.inbox
        assert inbox is not None
        while inbox.is_fresh():
            entry = inbox.take(source.local)
            if entry is None:
                return None
            local, drained = entry
            if not drained.expires > now:  # over, or NaN
                session.section(session.store.count_taken, source.target, EXPIRED, 1, local)
                continue
            channel = source.channel if source.local is local else source.queue + local
            try:
                return channel, self._message(drained)
            except DecodeError as error:
                self._undecodable(session, source, channel, drained.body, error.__context__)
        return None

    def take_one(
        self, session: Session, source: Source, waiter: int = 0
    ) -> tuple[str, dict[str, Any]] | None:
        """`take` from one queue that is not process-specific. `waiter`: the id of whom to park."""
        now = time.monotonic()
        if now >= session.attachment.due:
            self.upkeep(session, now)
        while True:
            body = session.section_of_three(session.take, source.target, now, waiter)
            if body is None:
                if session.store.dropped:
                    session.attachment.log_drop.tell()
                return None
            why = None
            try:
                message = self.unpack(body)
                if type(message) is dict:
                    return source.channel, message
            except Exception as error:
                why = error
            self._undecodable(session, source, source.channel, body, why)

    def _message(self, drained: Drained) -> dict[str, Any]:
        """What a message says, as a dict that nobody else has; raises DecodeError."""
        known = drained.message
        if known is not None:
            return known.copy()
        message = self.codec.decode(drained.body)
        if drained.shared and is_flat(message):
            drained.message = message
            return message.copy()
        return message

    def _undecodable(
        self,
        session: Session,
        source: Source,
        channel: str,
        body: bytes,
        why: BaseException | None,
    ) -> None:
        """Count a message that was taken and cannot be read, and say so. If it can be read after
        all, raise `why` it was not: an exception of a signal handler, say."""
        try:
            self.codec.decode(body)
            if why is not None:
                raise why
        except DecodeError as error:
            session.attachment.log_drop(UNDECODABLE, f"channel {channel!r}", str(error))
        # Taken is taken: that the lock is busy must not end the receive.
        with contextlib.suppress(LockTimeout):
            session.section(session.store.count_taken, source.target, UNDECODABLE)

    def _take_any(
        self,
        session: Session,
        sources: list[Source],
        now: float,
        waiter: Waiter | None,
        parked: bool,
    ) -> Any:
        """`take` where there are several queues, or an inbox: (source, channel, what was drained)
        or None."""
        found = self._buffered(session, sources, now)
        rings: Any = ()
        if found is not None:
            if parked and waiter is not None and not all(map(waiter.keeps, sources)):
                # Taken is taken: that the lock is busy must not lose it.
                with contextlib.suppress(LockTimeout):
                    rings = session.section(self._unpark, session, sources, None, waiter)
        elif (
            len(sources) == 1
            and waiter is not None
            and waiter.awaits(sources[0])
            # What was flushed is in the inbox until a section empties it.
            and (inbox := sources[0].inbox) is not None
            and inbox.is_fresh()
        ):
            return None
        else:
            woken: list[Waiting] = []
            found, rings = session.section(
                self._attempt, session, sources, now, waiter, parked, woken
            )
            for waiting in woken:
                waiting.wake()
        for row, other in rings:
            session.ring(row, other)
        return found

    def _buffered(self, session: Session, sources: list[Source], now: float) -> Any:
        """What was drained before, by whichever thread of this process."""
        for source in sources:
            if source.inbox and source.inbox.is_fresh():
                entry = self._entry(session, source, now, session.section)
                if entry is not None:
                    return source, source.queue + entry[0], entry[1]
        return None

    def _entry(self, session: Session, source: Source, now: float, section: Any) -> Entry | None:
        """The oldest entry for `source` in its inbox; what has expired is dropped on the way."""
        assert source.inbox is not None
        inbox = source.inbox
        while True:
            entry = inbox.take(source.local)
            if entry is None or entry[1].expires > now:
                return entry
            section(session.store.count_taken, source.target, EXPIRED, 1, entry[0])

    def _attempt(
        self,
        session: Session,
        sources: list[Source],
        now: float,
        waiter: Waiter | None,
        parked: bool,
        woken: list[Waiting],
    ) -> Any:
        """Inside a section: take from the first queue that has something, or park in all.

        Returns what was taken, as `_take_any`, and the rings that are due. Puts
        into `woken` which other receives of this process got something out of a drained queue.
        """
        store = session.store
        for source in sources:
            if source.inbox is None:
                body = store.take(source.target, now)
                if body is None:
                    continue
                found = source, source.channel, Drained(body, now)
            else:
                row = self._bind(session, source.target, now)
                woken += self._drain(session, source, row, now)
                entry = self._entry(session, source, now, _at_once)
                if entry is None:
                    continue
                found = source, source.queue + entry[0], entry[1]
            if parked and waiter is not None:
                return found, self._unpark(session, sources, source, waiter)
            return found, ()
        rings = []
        if waiter is not None and waiter.index:
            for source in sources:
                row = self._bind(session, source.target, now)
                store.park(row, waiter.index)
                if store.words[row + Q_PENDING]:
                    # More than one drain takes, and none of it was for this receive: look again.
                    rings.append((row, waiter.index))
        return None, rings

    def _drain(self, session: Session, source: Source, row: int, now: float) -> list[Waiting]:
        """Inside a section: own a process-specific queue, and move what it holds to the inbox.

        Returns whom to wake, once the section is over.
        """
        owner = session.attachment.claim_queue(row, now, self.expiry)
        if owner:
            raise NotOwner(
                f"channel {source.channel!r} belongs to process {owner}: a process-specific "
                "channel is received only by the process that first did"
            )
        inbox = source.inbox
        assert inbox is not None
        queue = source.queue
        inbox.drain(row, lambda local: self.capacity_of(queue + local), now)
        return inbox.to_wake()

    def _unpark(
        self,
        session: Session,
        sources: list[Source],
        taken: Source | None,
        waiter: Waiter,
    ) -> list[tuple[int, int]]:
        """Inside a section: take the waiter's bits back; returns the rings that then are due.

        A bit that is gone already means that a ring is under way for nothing: it goes to another.
        """
        store = session.store
        due = []
        for source in sources:
            if not waiter.index or waiter.keeps(source):
                continue
            row = store.find(source.target)
            if row and not store.unpark(row, waiter.index) and source is not taken:
                other = store.pick_if_waiting(row)
                if other:
                    due.append((row, other))
        return due

    def drain(self, session: Session, source: Source, waiter: Waiter) -> None:
        """The bell rang for a process-specific queue: empty it into the inbox, wake, and park."""
        woken, row = session.section(self._drain_and_park, session, source, waiter.index)
        for waiting in woken:
            waiting.wake()
        if row:
            session.ring(row, waiter.index)  # more than one section takes

    def _drain_and_park(
        self, session: Session, source: Source, waiter: int
    ) -> tuple[list[Waiting], int]:
        """Inside a section. Returns whom to wake, and the queue's row if something is left."""
        now = time.monotonic()
        row = self._bind(session, source.target, now)
        woken = self._drain(session, source, row, now)
        if waiter:
            session.store.park(row, waiter)
        return woken, row if waiter and session.store.words[row + Q_PENDING] else 0

    async def receive(
        self,
        session: Session,
        sources: list[Source],
        waiter: Waiter,
        deadline: float | None,
        parked: bool = False,
    ) -> tuple[str, dict[str, Any]] | None:
        """Wait for a message in one of `sources`: (channel, message), or None at `deadline`.

        `parked`: a `take` with this waiter has just found nothing. A lock that stays busy is ridden
        out, with a line in the log each `lock_timeout`.
        """
        busy = None
        wait = parked
        try:
            while True:
                if wait and not await waiter.wait(self, session, sources, deadline):
                    return None
                wait = True
                try:
                    found = self.take(session, sources, waiter, parked)
                except LockTimeout as error:
                    if deadline is not None and time.monotonic() >= deadline:
                        return None
                    wait = False
                    busy = busy or Busy(self)
                    busy(error)
                    await waiter.pause(0.001)
                    continue
                parked = found is None
                if found is not None:
                    return found
        finally:
            if parked:
                self._leave(session, sources, waiter)

    def _leave(self, session: Session, sources: list[Source], waiter: Waiter) -> None:
        """Stop waiting without a message: by a timeout, a cancellation or an error."""
        if session.attachment.broken is not None:
            return
        # If the lock is not to be had a bit stays, and whoever rings for it is passed on.
        with contextlib.suppress(LockTimeout):
            for row, other in session.section(self._unpark, session, sources, None, waiter):
                session.ring(row, other)
            for source in sources:
                waiter.left(session, source)


class Busy:
    """Says in the log, once in `lock_timeout` seconds, that a receive rides out a busy lock."""

    def __init__(self, core: Receiving) -> None:
        self._core = core
        self._since = 0.0

    def __call__(self, error: LockTimeout) -> None:
        now = time.monotonic()
        self._since = self._since or now
        if isinstance(error, LockBusy) and now - self._since < self._core.options.lock_timeout:
            return
        self._since = now
        logger.warning("prefix %r: a receive goes on waiting: %s", self._core.prefix, error)


async def ridden_out(
    core: Receiving,
    pause: Callable[[float], Any],
    deadline: float | None,
    call: Callable[..., Any],
    *args: Any,
) -> Any:
    """What a receive does before it can wait, however long the lock is busy; None at `deadline`.

    `pause(seconds)` is a coroutine function.
    """
    busy = Busy(core)
    while True:
        try:
            return call(*args)
        except LockTimeout as error:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            busy(error)
            await pause(0.001)


async def receive_any(
    core: Receiving,
    channels: Iterable[str],
    deadline: float | None,
    waiter_of: Callable[[Session], LoopWaiter],
    pause: Callable[[float], Any],
) -> tuple[str | None, dict[str, Any] | None]:
    """`receive` of several channels on an event loop, attaching first if need be (A9)."""
    session = core.session or await ridden_out(core, pause, deadline, core.attach)
    sources = core.sources(session, channels) if session is not None else None
    if not sources:
        return None, None
    waiter = await ridden_out(core, pause, deadline, waiter_of, session)
    if waiter is None:
        return None, None
    if core.spin and waiter.may_spin(sources):
        await waiter.spin(core, sources, deadline)
    return await core.receive(session, sources, waiter, deadline) or (None, None)


def _at_once(call: Any, *args: Any) -> Any:
    """In place of a section for what is inside one already."""
    return call(*args)


def _listed(channels: Any) -> list[Any]:
    if isinstance(channels, (str, bytes)):
        raise InvalidName(f"receive takes a list of channel names, not one string: [{channels!r}]")
    return list(channels)
