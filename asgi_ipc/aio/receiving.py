"""Receiving: the one operation that waits. Must not know any particular way of waiting.

A receive is in one of these states. Everything else in this file serves one of the arrows.

======== ========= ================================================== =======================
from     to        when                                               by
======== ========= ================================================== =======================
(begun)  taken     a glance, without the lock, shows a message        `glance`
(begun)  taken     a section finds a message                          `take`
(begun)  parked    the same section finds none                        `take`
parked   rung      a sender takes the waiter id out of the queue's    the waiter's `wait`
                   waiter set and rings; or a flush, or a look once
                   a second, suggests that something is there
rung     taken     the message is still there; the waiter id comes    `take`
                   out of the other queues in the same section
rung     parked    another receive was quicker                        `take`
parked   left      the deadline: the last try finds none              `take`
parked   left      a cancellation or an error                         `leave`
======== ========= ================================================== =======================

Nothing is awaited between taking a message out and returning it: cancelling a receive neither
loses nor duplicates anything. From *parked* on, a ring that is not needed is passed on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .. import clock
from ..attachment.inbox import ANY, Drained, Fed, Mailbox, wake_all
from ..attachment.process import notice_fork
from ..codec import DecodeError, is_flat
from ..errors import InvalidName, LockBusy, LockTimeout, NotOwner
from ..names import check_channel, check_receive, split
from ..options import UnknownCapacity
from ..store.layout import COUNT, EXPIRED, Q_PENDING, S_EPOCH, UNDECODABLE
from ..store.native import LOADED as COMPILED
from ..store.wakes import LEAVING, WOKEN
from .session import Base, Session
from .source import Source
from .waiter import Waiter, Way

if TYPE_CHECKING:
    from .hub import Sleep

logger = logging.getLogger("asgi_ipc")

Received = tuple[str, dict[str, Any]]  # a channel by its full name, and the message
Answer = TypeVar("Answer")

BUSY_PAUSE = 0.001  # seconds between two tries for a lock that stays busy


class _Visit(NamedTuple):
    """What `Receiving._visit` found, in one section."""

    source: Source | None  # where it found something; None: parked, if there is a waiter
    body: bytes | None  # of the message; None: what was drained is in the inbox of `source`
    rings: list[tuple[int, int]]  # (row, waiter id) to ring


class Receiving(Base):
    """The receiving half of the operations."""

    # -- what a receive names ---------------------------------------------------------------------

    def sources(self, session: Session, channels: Iterable[str]) -> list[Source]:
        """Look up what a receive names; see `check_receive`."""
        known = session.sources
        if type(channels) is not list:
            channels = listed(channels)
        try:
            if len(channels) == 1:
                return known[channels[0]]
            found = [known[channel][0] for channel in channels]
        except (KeyError, TypeError):
            names = [self.check_receive(name) for name in channels]
            found = [self._named_source(session, name) for name in names]
            if len(names) == 1:
                return known.get(names[0], found)  # the list that the next receive gets
        if len(found) > 1:
            # Begin with a different one each time: a busy channel never starves a quiet one.
            self._turn = turn = (self._turn + 1) % len(found)
            found = found[turn:] + found[:turn]
        return found

    def check_receive(self, channel: object) -> str:
        """Return the name that a receive takes, or raise InvalidName: process-specific channels
        up to the ``!``, or in full if this layer made the name."""
        if type(channel) is str and self.own in channel:
            return check_channel(channel)
        return check_receive(channel)

    def _named_source(self, session: Session, channel: str) -> Source:
        if "!" in channel and not channel.endswith("!"):
            known = session.exact_sources.get(channel)
            return (known or self.exact_source(session, channel))[0]
        return self._source(session, channel)

    def exact_source(self, session: Session, channel: str) -> list[Source]:
        """What a receive of one full name takes from, as a list of one; looked up once."""
        channel = check_channel(channel)
        found = [self._source(session, channel)]
        session.remember(session.exact_sources, channel, found)
        return found

    def _source(self, session: Session, channel: str) -> Source:
        queue, local = split(channel)
        if local:
            whole = (session.sources.get(queue) or [self._source(session, queue)])[0]
            return Source(channel, whole.inbox, whole)
        source = Source(channel, session.attachment.inbox(queue) if queue.endswith("!") else None)
        session.remember(session.sources, channel, [source])
        return source

    # -- waiting ----------------------------------------------------------------------------------

    async def receive_from(
        self, channels: Iterable[str], deadline: float | None, way: Way
    ) -> Received | tuple[None, None]:
        """Attach if needed, and receive from the first of `channels` that has a message."""
        notice_fork()
        session = self.session or await self.ride_out(way, deadline, self.attach)
        sources = self.sources(session, channels) if session is not None else None
        if session is None or not sources:
            return None, None
        return await self.receive(session, sources, deadline, way) or (None, None)

    async def receive(
        self,
        session: Session,
        sources: list[Source],
        deadline: float | None,
        way: Way,
        epoch: int | None = None,
        parked: bool = False,
    ) -> Received | None:
        """Wait for a message in one of `sources`; None at `deadline`, and after a flush if `epoch`
        is the number of an earlier one. `parked`: the waiter may be parked in all of them.

        It keeps waiting while the lock stays busy, with a line in the log each ``lock_timeout``.
        Raises Inherited in a child that was forked since `session` was looked up.
        """
        notice_fork()
        if session.attachment.broken is not None:
            raise session.attachment.why_broken()
        for source in sources:
            source.find_box()  # for the next glance: it may have been removed
        try:
            waiter = way.waiter(session)
        except LockTimeout:
            late = await self.ride_out(way, deadline, way.waiter, session)
            if late is None:
                return None
            waiter = late
        over = False
        busy = None
        try:
            if waiter.begin(session, sources, self.spin):
                await waiter.spin(sources, self.spin, deadline)
            while True:
                try:
                    found = self.take(session, sources, waiter, parked, over)
                except LockTimeout as error:
                    if deadline is not None and clock.monotonic() >= deadline:
                        return None
                    busy = busy or Busy(self)
                    busy.note(error)
                    await way.pause(BUSY_PAUSE)
                    continue
                parked = found is None and not over
                # What came before the deadline is received, however late this runs.
                if found is not None or over or (epoch is not None and epoch != session.epoch):
                    return found
                if not await waiter.wait(self, session, sources, deadline):
                    over = True
                    for source in sources:
                        source.spin.rest()
        except ValueError as error:
            raise session.attachment.explain(error) from None
        finally:
            if parked:
                self.leave(session, sources, waiter)

    async def attach_patiently(self, way: Way) -> Session:
        """`attach`, however long the lock stays busy."""
        session = await self.ride_out(way, None, self.attach)
        assert session is not None  # without a deadline it does not give up
        return session

    async def ride_out(
        self, way: Way, deadline: float | None, call: Callable[..., Answer], *args: Any
    ) -> Answer | None:
        """Call what a receive needs before it can wait, until the lock is free; None at
        `deadline`."""
        busy = Busy(self)
        while True:
            try:
                return call(*args)
            except LockTimeout as error:
                if deadline is not None and clock.monotonic() >= deadline:
                    return None
                busy.note(error)
                await way.pause(BUSY_PAUSE)

    def leave(self, session: Session, sources: list[Source], waiter: Waiter) -> None:
        """Stop waiting without a message."""
        if session.attachment.broken is not None:
            return
        # Where the lock stays busy the waiter id stays parked: its ring is passed on.
        with contextlib.suppress(LockTimeout):
            self._unpark_all(session, sources, waiter)
            for source in sources:
                waiter.end(session, source)

    # -- taking -----------------------------------------------------------------------------------

    def glance(self, session: Session, sources: list[Source]) -> Received | None:
        """Take from one source what a look without the lock shows to be there. None proves nothing:
        a receive that may wait continues with `receive`."""
        source = sources[0]
        if source.inbox is None:
            return self.take_one(session, source) if source.target.words[Q_PENDING] else None
        box = source.box
        if source.target.words[Q_PENDING] or box.messages or box.more:
            return self._take_any(session, sources, None, False)
        if source.local is ANY and source.buffered():
            return self._take_any(session, sources, None, False)
        return None

    def take(
        self,
        session: Session,
        sources: list[Source],
        waiter: Waiter | None = None,
        parked: bool = False,
        last: bool = False,
    ) -> Received | None:
        """Take one message out of `sources`; None if there is none.

        With a waiter: park it, if there is none, in the section that found none. `parked`: it may
        be parked in all of them from the last try. Taking a message ends that, and so does the
        `last` try in any case.
        """
        if len(sources) == 1 and sources[0].inbox is None:
            found = self.take_one(session, sources[0], _parking(waiter, parked, last))
        else:
            found = self._take_any(session, sources, waiter, parked)
            if found is None and last:
                assert waiter is not None
                self.leave(session, sources, waiter)
                return None
        if parked and (found is not None or last):
            assert waiter is not None
            for source in sources:
                waiter.end(session, source)
        return found

    def take_one(self, session: Session, source: Source, waiter_id: int = 0) -> Received | None:
        """`take` from one queue that is not process-specific. `waiter_id`: see `Queues.take`."""
        if COMPILED and waiter_id:
            done = session.usual.take(source, waiter_id)
            if done:
                found = self.unpacked(session, done)
                if found is not None:
                    return found
            elif done is False:  # it is parked, or has left
                if session.store.dropped:
                    session.attachment.log_drop.tell()
                return None
        now = clock.monotonic()
        if now >= session.due[()]:
            self.upkeep(session, now)
        while True:
            body = session.section_of_three(session.take, source.target, now, waiter_id)
            if session.rings:
                session.ring_senders()
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

    def unpacked(self, session: Session, done: Any) -> Received | None:
        """What the compiled path has received: a tuple; or a list of the source, the message or
        bytes that it could not unpack, and the ring that is due. None if the bytes are no message;
        that is counted."""
        if type(done) is tuple:
            return done
        source, body, ring = done
        if ring is not None:
            session.ring(*ring)
        if type(body) is dict:
            return source.channel, body
        try:
            return source.channel, self.codec.decode(body)
        except DecodeError as error:
            self._undecodable(session, source, source.channel, body, error.__context__)
        return None

    def _take_any(
        self, session: Session, sources: list[Source], waiter: Waiter | None, parked: bool
    ) -> Received | None:
        """`take` where there are several queues, or an inbox."""
        now = clock.monotonic()
        if now >= session.due[()]:
            self.upkeep(session, now)
        feds: list[Fed] = []
        while True:
            for source in sources:
                found = self._take_buffered(session, source, now) if source.buffered() else None
                if found is not None:
                    if parked and waiter is not None and not all(map(waiter.stays, sources)):
                        # A taken message must be returned, however busy the lock is.
                        with contextlib.suppress(LockTimeout):
                            self._unpark_all(session, sources, waiter)
                    return found
            if waiter is not None and len(sources) == 1 and waiter.is_parked(sources[0]):
                inbox = sources[0].inbox
                # What was flushed is in the inbox until a section empties it.
                if inbox is not None and inbox.is_fresh():
                    return None
            try:
                while True:
                    try:
                        visit = session.section(
                            self._visit, session, sources, now, waiter, parked, feds
                        )
                        break
                    except UnknownCapacity as unknown:
                        # Again before anything is taken: the rest is to be drained, too.
                        self.capacities.look_up(unknown.channels)
            finally:
                if feds:
                    wake_all(feds)
            for row, waiter_id in visit.rings:
                session.ring(row, waiter_id)
            if visit.source is None:
                if session.store.dropped:
                    session.attachment.log_drop.tell()
                return None
            parked = False
            if visit.body is None:
                found = self._take_buffered(session, visit.source, now)
                if found is not None:
                    return found
            else:
                try:
                    return visit.source.channel, self.codec.decode(visit.body)
                except DecodeError as error:
                    channel = visit.source.channel
                    self._undecodable(session, visit.source, channel, visit.body, error.__context__)

    def take_own(
        self, session: Session, source: Source, box: Mailbox, sleep: Sleep
    ) -> dict[str, Any] | None:
        """The oldest message in a mailbox of `source`, for a receive that has slept there; None if
        there is none. This is most of what a broadcast costs a socket."""
        now = clock.monotonic()
        if now >= session.due[()]:
            self.upkeep(session, now)
        hub = sleep.hub
        if now > hub.late_at:
            hub.late = True
        inbox = source.inbox
        assert inbox is not None
        while inbox.epoch == session.store.words[S_EPOCH]:
            drained = box.pop(inbox.newest)
            if drained is None:
                source.box = inbox.mailbox(box.local)  # it may have been removed
                return None
            if inbox.suspects or inbox.sending:
                inbox.taken(box.local)
            known = drained.message
            if known is not None and drained.expires > now:
                return known.copy()
            message = self._unpacked(session, source, box.local, drained, now)
            if message is not None:
                return message
        return None

    def _take_buffered(self, session: Session, source: Source, now: float) -> Received | None:
        """The oldest message for `source` in its inbox, drained before by a thread of this
        process."""
        inbox = source.inbox
        assert inbox is not None
        while inbox.is_fresh():
            entry = inbox.take(source.local)
            if entry is None:
                return None
            local, drained = entry
            channel = source.queue + local if source.local is ANY else source.channel
            known = drained.message
            if known is not None and drained.expires > now:
                return channel, known.copy()
            message = self._unpacked(session, source, local, drained, now)
            if message is not None:
                return channel, message
        return None

    def _unpacked(
        self, session: Session, source: Source, local: str, drained: Drained, now: float
    ) -> dict[str, Any] | None:
        """The content of a message that was taken, as a dict that nobody else has; None if it has
        expired or cannot be read, which is counted."""
        if not drained.expires > now:  # over, or NaN
            session.section(session.store.count_taken, source.target, EXPIRED, 1, local)
            return None
        try:
            message = self.codec.decode(drained.body)
        except DecodeError as error:
            channel = source.queue + local
            self._undecodable(session, source, channel, drained.body, error.__context__)
            return None
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
        """Count and log a message that was taken and cannot be read. If it can be read after all,
        raise `why` it was not: an exception of a signal handler, for example."""
        try:
            self.codec.decode(body)
            if why is not None:
                raise why
        except DecodeError as error:
            session.attachment.log_drop(UNDECODABLE, f"channel {channel!r}", str(error))
        # The message is gone: a busy lock must not end the receive, too.
        with contextlib.suppress(LockTimeout):
            session.section(session.store.count_taken, source.target, UNDECODABLE)

    # -- inside a section -------------------------------------------------------------------------

    def _visit(
        self,
        session: Session,
        sources: list[Source],
        now: float,
        waiter: Waiter | None,
        parked: bool,
        feds: list[Fed],
    ) -> _Visit:
        """Take from the first queue that has something, or park in all of them. What inboxes get is
        added to `feds`."""
        store = session.store
        rings: list[tuple[int, int]] = []
        for source in sources:
            body = None
            if source.inbox is None:
                body = store.take(source.target, now)
                if body is None:
                    continue
                if parked:
                    store.note_take(source.target.row, now, 0.0, _parking(waiter, True))
            else:
                row = store.require(source.target, now)
                try:
                    self._drain(session, source, row, now)
                finally:
                    fed = source.inbox.fed()
                    if fed:
                        feds.append((source.inbox, fed))
                if source.inbox.suspects:
                    source.inbox.visited(source.local)
                if not source.buffered():
                    continue
            if parked and waiter is not None:
                rings = self._unpark(session, sources, source, waiter)
            return _Visit(source, body, rings)
        waiter_id = _parking(waiter, parked)
        if waiter is not None and waiter_id:
            for source in sources:
                row = store.require(source.target, now)
                store.park_receiver(source.target, now, waiter_id)
                if store.words[row + Q_PENDING] & COUNT:
                    # More than one drain takes, and none of it was for this receive: look again.
                    rings.append((row, waiter.waiter_id))
        return _Visit(None, None, rings)

    def _unpark(
        self, session: Session, sources: list[Source], taken: Source | None, waiter: Waiter
    ) -> list[tuple[int, int]]:
        """Take the waiter id back out of the queues of `sources`; returns the rings that are due.

        If it is out of a queue already, a ring for that queue is under way that is not needed,
        except where the message was `taken`: ring another waiter instead.
        """
        store = session.store
        due = []
        for source in sources:
            if not waiter.waiter_id or waiter.stays(source):
                continue
            row = store.find(source.target)
            if row and not store.unpark(row, waiter.waiter_id) and source is not taken:
                other = store.pick_if_pending(row)
                if other:
                    due.append((row, other))
        return due

    def _unpark_all(self, session: Session, sources: list[Source], waiter: Waiter) -> None:
        """Not inside a section: run `_unpark`, and ring."""
        for row, other in session.section(self._unpark, session, sources, None, waiter):
            session.ring(row, other)

    def _drain(self, session: Session, source: Source, row: int, now: float) -> None:
        """Own a process-specific queue, and move what it holds to the inbox."""
        owner = session.attachment.claim_queue(row, now, self.expiry)
        if owner:
            raise NotOwner(
                f"channel {source.channel!r} belongs to process {owner}: only the process that "
                "first received on a process-specific channel may receive on it. new_channel() "
                "makes a name that belongs to this process"
            )
        inbox = source.inbox
        assert inbox is not None
        inbox.drain(row, self.capacities.known, now)

    # -- for hubs ---------------------------------------------------------------------------------

    def drain(self, session: Session, source: Source, waiter: Waiter) -> dict[Mailbox, None]:
        """The bell rang for a process-specific queue: move what it holds to the inbox, and park
        again. Returns the mailboxes that got something: the caller wakes the receives there."""
        while True:
            try:
                fed, row = session.section(self._drain_and_park, session, source, waiter.waiter_id)
                break
            except UnknownCapacity as unknown:
                self.capacities.look_up(unknown.channels)
        if row:
            session.ring(row, waiter.waiter_id)  # more than one section may take
        return fed

    def _drain_and_park(
        self, session: Session, source: Source, waiter_id: int
    ) -> tuple[dict[Mailbox, None], int]:
        """Inside a section. Returns which mailboxes got something, and the queue's row if it is not
        empty."""
        now = clock.monotonic()
        row = session.store.require(source.target, now)
        self._drain(session, source, row, now)
        assert source.inbox is not None
        fed = source.inbox.fed()
        if waiter_id:
            session.store.park_receiver(source.target, now, waiter_id + WOKEN)
        pending = session.store.words[row + Q_PENDING] & COUNT
        return fed, row if waiter_id and pending else 0


def _parking(waiter: Waiter | None, parked: bool, last: bool = False) -> int:
    """What `Queues.take` is told of a waiter; 0 if there is none, or it has no id."""
    if waiter is None or not waiter.waiter_id:
        return 0
    if not parked:
        return waiter.waiter_id
    return waiter.waiter_id + (WOKEN + LEAVING if last else WOKEN)


class Busy:
    """Logs, once in ``lock_timeout`` seconds, that a receive keeps waiting for a busy lock."""

    def __init__(self, core: Receiving) -> None:
        self._core = core
        self._since = 0.0

    def note(self, error: LockTimeout) -> None:
        now = clock.monotonic()
        self._since = self._since or now
        if isinstance(error, LockBusy) and now - self._since < self._core.options.lock_timeout:
            return
        self._since = now
        logger.warning("prefix %r: a receive continues to wait: %s", self._core.prefix, error)


def listed(channels: Iterable[str]) -> list[str]:
    if isinstance(channels, (str, bytes)):
        raise InvalidName(f"give a list of channel names, not one string: [{channels!r}]")
    return list(channels)
