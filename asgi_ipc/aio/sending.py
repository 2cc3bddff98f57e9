"""Sending: at once, or as soon as there is room. Must not know any particular way of waiting.

A send that may wait is in one of these states. The others end in the first line or are refused.

======== ========= ================================================== =======================
from     to        when                                               by
======== ========= ================================================== =======================
(begun)  sent      a section finds room                               `send`
(begun)  parked    another one finds none                             `_send_or_park`
parked   rung      a take, or whatever else makes room, takes the     the waiter's `wait`
                   waiter id out of the set of senders and rings; or
                   a message in the way expires, or a look once a
                   second suggests that there is room
rung     sent      the room is still there                            `_send_or_park`
rung     parked    it is not                                          `_send_or_park`
parked   left      the deadline, a cancellation or an error           `_leave_room`
======== ========= ================================================== =======================

Nothing is awaited between sending a message and returning: a send that is cancelled has sent
nothing. From *parked* on, a ring that is not needed is passed on.

The queue of a process-specific channel is full for all channels of its process. If that process
sends to itself, its loop may get no turn to drain the queue. So the send drains it at once, and
then the capacity of the one channel counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .. import clock, errors
from ..attachment.inbox import IN_HAND, Fed, Inbox, wake_all
from ..attachment.process import notice_fork
from ..errors import LockTimeout, NotAChannel
from ..names import check_channel, split
from ..options import UnknownCapacity
from ..statistics import size
from ..store.layout import COUNT, Q_PENDING, R_GENERATION, S_LIVE, S_SENDING, WORD
from ..store.native import LOADED as COMPILED
from ..store.queues import CHANNELS, FULL, MESSAGES, OWN, OWN_LIMIT, PROMISED, Target
from ..store.room import AT_ONCE, NEW
from ..store.store import Store
from .receiving import BUSY_PAUSE, Busy, Received, Receiving
from .session import Session
from .source import Source
from .waiter import Waiter, Way

_AGAIN = -9  # `_put_own` has drained as much as one section may: call it again


class Room(Source):
    """What a send waits for, for a waiter that otherwise waits for messages."""

    __slots__ = ("_store", "parked", "sending", "until", "why")

    sends = True

    def __init__(self, channel: str, target: Target, store: Store) -> None:
        self.channel = channel
        self.queue, self.local = split(channel)
        self.target = target
        self.inbox = None
        self.parked = 0  # the set of senders where it is,
        self.why = 0  # and what `put` returned instead of sending
        self.sending: Inbox | None = None  # the inbox of this process that has no room
        self.until = float("inf")  # time when a message expires that is in the way
        self._store = store

    @property
    def place(self) -> int:
        return self.parked

    def ready(self) -> bool:
        target = self.target
        if self.sending is not None:
            return not self.sending.is_full(self.local or "", target.capacity)
        if self.place == S_SENDING:
            # Nobody rings for memory that other programs free.
            return self._store.has_memory() or self.why != MESSAGES
        words = target.words
        full = words[Q_PENDING] & COUNT >= target.capacity
        return not full or words[R_GENERATION] != target.generation

    def awaited(self) -> bool:
        return False

    def park_again(self, store: Store, waiter_id: int) -> bool:
        if store.has_room(self.place, self.target.capacity):
            return True
        store.park_sender(self.place, waiter_id)
        return False


class Meanwhile(NamedTuple):
    """What a send does while it waits for room: it receives."""

    channels: list[str]  # those that are named when it looks; none may be removed
    # Called before each try to send with None, and with each message that comes. If it returns
    # True, the send is given up.
    hear: Callable[[Received | None], bool]
    # Called first, with the waiter, which another thread may wake.
    begin: Callable[[Any], object] = lambda waiter: None
    capacity: int | None = None  # messages, if less than the capacity of the channel


class Sending(Receiving):
    """The sending half of the operations."""

    # -- at once ----------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Append `message` to `channel`. Never blocks.

        Raises InvalidName, InvalidMessage, MessageTooLarge, ChannelFull, NotAChannel.
        """
        session = self.session or self.attach()
        if COMPILED and (done := session.usual.send(channel, message)):
            if done is not True:
                session.ring(*done)
            return
        now = clock.monotonic()
        if now >= session.due[()]:
            session = self.after_upkeep(session, now)
        try:
            target = session.targets[channel]
        except (KeyError, TypeError):
            target = self._target(session, channel)
        body = self.encode(message)
        if len(body) > self.max_message_size:
            raise errors.MessageTooLarge(self._too_large(channel, len(body)))
        waiter_id = session.section_of_three(session.put, target, body, now)
        if session.rings:  # it dropped messages that had expired, and others wait for room
            session.ring_senders()
        if waiter_id:
            if waiter_id < 0:
                waiter_id = self._put_otherwise(session, target, body, waiter_id, AT_ONCE)
                if waiter_id < 0:
                    self._refuse(session, channel, waiter_id, len(body))
            session.ring(target.row, waiter_id)

    def _target(self, session: Session, channel: str) -> Target:
        """Where messages for `channel` go; looked up once for each name."""
        channel = check_channel(channel)
        queue, local = split(channel)
        capacity = self.capacity_of(channel)
        target = Target(queue.encode("ascii"), local.encode("ascii"), capacity, self.expiry)
        session.section(self._refuse_group, session, target, channel)
        session.remember(session.targets, channel, target)
        if target.queue in session.own:  # after that: another thread may be marking the known ones
            target.limit = OWN_LIMIT
        return target

    def _refuse_group(self, session: Session, target: Target, channel: str) -> None:
        """Inside a section: raise NotAChannel for the name of a group that no channel has."""
        store = session.store
        if not store.find(target) and store.groups.find(target.queue):
            raise NotAChannel(
                f"{channel!r} is the name of a group, and no channel has that name. To send to the "
                "members of the group, use group_send. To use the name for a channel too, receive "
                "on that channel first"
            )

    def _refuse(self, session: Session, channel: str, why: int, length: int) -> NoReturn:
        if why == FULL:
            capacity = self.capacity_of(channel)
            raise errors.ChannelFull(
                f"channel {channel!r} is at its capacity of {capacity} "
                f"message{'s' if capacity != 1 else ''} (set by "
                f"{self.capacities.option_for(channel)}): its readers are slower than its senders, "
                "or there are none"
            )
        raise errors.ChannelFull(
            f"there is no memory for another message to {channel!r} of prefix {self.prefix!r}: "
            + self._lack(session, why, length)
        )

    def _lack(self, session: Session, why: int, length: int) -> str:
        """Which limit a message of `length` bytes met, and the remedy. `why`: what `put` returned,
        which other threads do not change."""
        store = session.store
        if why == MESSAGES:
            limit = store.layout.message_memory
            in_use = size((store.words[S_LIVE] & COUNT) * WORD)
            return (
                f"message_memory={limit} is used up ({in_use} of {size(limit)} in use, and the "
                f"message takes {size(length)} and more). Add receivers, or raise message_memory "
                "in all processes"
            )
        if why == PROMISED:
            return "the free room is promised to senders that wait. Try again, or give a timeout"
        return store.why_no_channel(why) if why == CHANNELS else store.shortage()

    def _too_large(self, channel: str, size: int) -> str:
        return (
            f"the message to {channel!r} takes {size} bytes, and max_message_size is "
            f"{self.max_message_size}. Send a reference to the data, or raise max_message_size in "
            "all processes"
        )

    # -- to this process --------------------------------------------------------------------------

    def _put_otherwise(
        self, session: Session, target: Target, body: bytes, why: int, sender: int
    ) -> int:
        """`put` returned `why`. If this process receives on the queue, drain it and put again.
        Returns what `put` does."""
        counted = why == FULL and sender == AT_ONCE
        if why != OWN and (why != FULL or not self._becomes_own(session, target)):
            return why
        feds: list[Fed] = []
        waiter_id = _AGAIN
        try:
            while waiter_id == _AGAIN:
                now = clock.monotonic()
                try:
                    waiter_id = session.section(
                        self._put_own, session, target, body, now, sender, counted, feds
                    )
                except UnknownCapacity as unknown:
                    self.capacities.look_up(unknown.channels)
        finally:
            if feds:
                wake_all(feds)
        return waiter_id

    def _becomes_own(self, session: Session, target: Target) -> bool:
        """Whether this process receives on a queue. If so, each of its channels has its own
        capacity from now on, for this layer."""
        inbox = self._inbox(session, target)
        if inbox is None or not session.section(self._is_own, session, target):
            return False
        inbox.slack = IN_HAND
        session.own[target.queue] = inbox
        for each in session.targets.copy().values():
            if each.queue == target.queue:
                each.limit = OWN_LIMIT
        target.limit = OWN_LIMIT
        return True

    def _inbox(self, session: Session, target: Target) -> Inbox | None:
        """The inbox that this process has for a queue; None if it never received there."""
        if not target.queue.endswith(b"!"):
            return None
        return session.attachment.inboxes.get(target.queue.decode("ascii"))

    def _is_own(self, session: Session, target: Target) -> bool:
        """Inside a section: whether this process owns the queue of `target`."""
        row = session.store.find(target)
        return row != 0 and session.store.owner(row) == session.attachment.process

    def _put_own(
        self,
        session: Session,
        target: Target,
        body: bytes,
        now: float,
        sender: int,
        counted: bool,
        feds: list[Fed],
    ) -> int:
        """Inside a section: `put` into a queue of this process, by the capacity of the one channel:
        what its inbox holds counts too. Drains the queue where that is not certain.

        `counted`: a refusal was counted for this message. What inboxes get is added to `feds`.
        """
        store, inbox = session.store, session.own[target.queue]
        full = False
        if self._is_own(session, target):
            inbox.refresh()
            local, capacity = target.local_parts.decode("ascii"), target.capacity
            pending = store.words[target.row + Q_PENDING] & COUNT
            if pending and inbox.held(local) + pending >= capacity:
                self._drain_own(target, inbox, now, feds)
                left = store.words[target.row + Q_PENDING] & COUNT
                if 0 < left < pending:  # else the count is damaged
                    return _AGAIN
            if inbox.is_full(local, capacity):
                session.attachment.upkeep.drop_expired(inbox, now)
                full = inbox.is_full(local, capacity)
        waiter_id = FULL if full else store.put(target, body, now, sender or NEW)
        if sender == AT_ONCE and (waiter_id < 0) != counted:
            store.count_refusal(target.row, -1 if counted else 1)
        return waiter_id

    def _drain_own(self, target: Target, inbox: Inbox, now: float, feds: list[Fed]) -> None:
        """Inside a section: move what is in a queue of this process to its inbox, and note which
        receives to wake, also if it raises UnknownCapacity in between."""
        try:
            inbox.drain(target.row, self.capacities.known, now)
        finally:
            feds.append((inbox, inbox.fed()))

    # -- when there is room -----------------------------------------------------------------------

    def send_if_room(self, channel: str, message: dict[str, Any]) -> bool:
        """`send`, but return False if there is no room, and count no refusal."""
        session = self.session or self.attach()
        # Into a queue of this process it goes by the one channel also while the queue has room:
        # what is drained where the inbox is full would be dropped.
        if COMPILED and type(channel) is str:
            queue = channel[: channel.find("!") + 1]  # "" if it is not process-specific
            if queue not in session.attachment.inboxes:
                done = session.usual.send(channel, message)
                if done:
                    if done is not True:
                        session.ring(*done)
                    return True
        target, body, now = self._prepared(session, channel, message)
        waiter_id = None
        while waiter_id is None and not (target.limit < 0 or self._becomes_own(session, target)):
            waiter_id = session.section(
                self._put_to_others, session, session.store.put, target, body, now, NEW
            )
        if waiter_id is None:
            waiter_id = self._put_otherwise(session, target, body, OWN, NEW)
        if waiter_id > 0:
            session.ring(target.row, waiter_id)
        return waiter_id >= 0

    def _put_to_others(
        self, session: Session, put: Callable[..., Any], target: Target, *args: Any
    ) -> Any:
        """Inside a section: `put` by a method of the store. None if this process has begun to
        receive on the queue since that was asked."""
        if self._inbox(session, target) is not None and self._is_own(session, target):
            return None
        return put(target, *args)

    async def send_when_room(
        self,
        channel: str,
        message: dict[str, Any],
        deadline: float,
        way: Way,
        meanwhile: Meanwhile | None = None,
    ) -> bool:
        """`send`, waiting for room until `deadline`; then it raises ChannelFull. False if
        `meanwhile` ended it: nothing was sent then.

        It waits for a busy lock in the same way. Raises Inherited in a child that was forked
        meanwhile.
        """
        notice_fork()
        session = self.session or await self.ride_out(way, deadline, self.attach) or self.attach()
        if session.attachment.broken is not None:
            raise session.attachment.why_broken()
        target, body, _ = self._prepared(session, channel, message)
        sources: list[Source] = []
        if meanwhile is not None:
            target = _limited(target, meanwhile.capacity)
        room = Room(channel, target, session.store)
        waiter = await self.ride_out(way, deadline, way.waiter, session) or way.waiter(session)
        if meanwhile is not None:
            meanwhile.begin(waiter)
        busy = Busy(self)
        over = False
        parked = False  # at the queues of `sources`
        try:
            while True:
                over, found = over or clock.monotonic() >= deadline, None
                try:
                    if meanwhile is not None:
                        if meanwhile.hear(None):
                            return False
                        if meanwhile.channels:
                            sources = self.sources(session, meanwhile.channels)
                            found = self.take(session, sources, waiter, parked)
                            parked = found is None
                        if found is not None and meanwhile.hear(found):
                            return False
                    why = self._send_or_park(session, room, body, waiter)
                except LockTimeout as error:
                    if over:
                        raise
                    busy.note(error)
                    await way.pause(BUSY_PAUSE)
                    continue
                if why >= 0:
                    return True
                # Room that came before the deadline is used, however late this runs.
                if over:
                    session.section(
                        session.store.count_refusal, target.row if why == FULL else 0, 1
                    )
                    self._refuse(session, channel, why, len(body))
                if found is None:
                    until = min(deadline, room.until)
                    slept = await waiter.wait(self, session, [*sources, room], until)
                    # The waiter has slept long enough, whatever the clock says.
                    over = not slept and until == deadline
        except ValueError as error:
            raise session.attachment.explain(error) from None
        finally:
            if parked:
                self.leave(session, sources, waiter)
            if room.place or room.sending is not None:
                self._leave_room(session, room, waiter)

    def _prepared(
        self, session: Session, channel: str, message: dict[str, Any]
    ) -> tuple[Target, bytes, float]:
        """What a section needs to send: (target, body, now). Does the upkeep that is due."""
        now = clock.monotonic()
        if now >= session.due[()]:
            self.upkeep(session, now)
        try:
            target = session.targets[channel]
        except (KeyError, TypeError):
            target = self._target(session, channel)
        body = self.encode(message)
        if len(body) > self.max_message_size:
            raise errors.MessageTooLarge(self._too_large(channel, len(body)))
        return target, body, now

    def _send_or_park(self, session: Session, room: Room, body: bytes, waiter: Waiter) -> int:
        """Send, or park. Returns what `put` does."""
        target, now = room.target, clock.monotonic()
        if now >= session.due[()]:
            self.upkeep(session, now)
        room.sending = None
        put, tried = session.store.put_or_park, None
        while tried is None:
            # A queue that nobody received on when this began may belong to this process by now.
            own = target.limit < 0 or self._becomes_own(session, target)
            if own:
                waiter_id = self._put_otherwise(session, target, body, OWN, NEW)
                inbox = session.own[target.queue]
                if waiter_id == FULL and inbox.is_full(room.local or "", target.capacity):
                    room.sending = inbox
                    return FULL
                if waiter_id >= 0:
                    if waiter_id:
                        session.ring(target.row, waiter_id)
                    return waiter_id
            before = room.place
            stays = before != 0 and waiter.stays(room)
            args = target, body, now, waiter.waiter_id, before, stays
            if own:
                tried = session.section(put, *args)
            else:
                tried = session.section(self._put_to_others, session, put, *args)
        if before != tried.place and before:
            waiter.end(session, room)  # others of a loop still wait there
        room.parked, room.until, room.why = tried.place, tried.until, tried.waiter_id
        if tried.waiter_id > 0:
            session.ring(target.row, tried.waiter_id)
        return tried.waiter_id

    def _leave_room(self, session: Session, room: Room, waiter: Waiter) -> None:
        """Stop waiting without having sent: by a timeout, a cancellation or an error."""
        if session.attachment.broken is not None:
            return
        if room.sending is not None:
            if room.ready():  # it may have been woken for that
                room.sending.wake_sender(room.local or "")
        # Where the lock stays busy the waiter id stays parked: its ring is passed on.
        with contextlib.suppress(LockTimeout):
            if room.place:
                stays = waiter.stays(room)
                session.section(
                    session.store.leave_room, room.target, waiter.waiter_id, room.place, stays
                )
                waiter.end(session, room)


def _limited(target: Target, capacity: int | None) -> Target:
    """A target for the same channel with another capacity, if that is less."""
    if capacity is None or capacity >= target.capacity:
        return target
    return Target(target.queue, target.local_parts, capacity, target.expiry)
