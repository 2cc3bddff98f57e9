"""The operations of both contracts, written once. Layers differ only in how they wait.

Everything but `receive` (in `receiving`) is a plain call that never waits for messages. This file
must not know an event loop.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from .. import clock, errors
from ..errors import CorruptStore, NotAChannel
from ..inspection.snapshot import Snapshot, Totals
from ..inspection.view import View
from ..names import check_channel, check_group, split
from ..native import LOADED as COMPILED
from ..native import PURE
from ..options import UnknownCapacity
from ..statistics import Stats, size
from ..store.layout import (
    CAPACITY,
    MEMORY,
    Q_CREATED,
    Q_PENDING,
    Q_REFUSED,
    Q_SENT,
    S_LIVE,
    S_REFUSED,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
    WORD,
)
from ..store.queues import CHANNELS, FULL, GONE, MESSAGES, NO_MEMORY, Target
from .fanout import Broadcast, Fanout
from .receiving import Receiving
from .session import CACHED, NEVER, Session

_TARGETS_AT_ONCE = 64  # queues that a broadcast reaches in one section


class _Figures(NamedTuple):
    """What the statistics of the specification are made of."""

    since: float  # time when counting began
    sent: int
    refused: int
    pending: int
    oldest: float  # seconds that the oldest pending message has waited


class Core(Receiving):
    """The operations of one layer on the attachment of its process."""

    _totals: Totals | None = None  # the next rates are counted from these

    # -- sending ----------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Append `message` to `channel`. Never blocks.

        Raises InvalidName, InvalidMessage, MessageTooLarge, ChannelFull, NotAChannel.
        """
        session = self.session or self.attach()
        if COMPILED and session.usual.send(channel, message):
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
        if waiter_id:
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
        return target

    def _refuse_group(self, session: Session, target: Target, channel: str) -> None:
        """Inside a section: raise NotAChannel for the name of a group that no channel has."""
        store = session.store
        if not store.find(target) and store.groups.find(target.queue):
            raise NotAChannel(
                f"{channel!r} is the name of a group, and no channel has that name. To send to the "
                "members of the group, use group_send (send_group in Channels 1). To use the name "
                "for a channel too, receive on that channel first"
            )

    def _refuse(self, session: Session, channel: str, why: int, length: int) -> None:
        if why == FULL:
            raise errors.ChannelFull(
                f"channel {channel!r} is at its capacity of {self.capacity_of(channel)} messages: "
                "its readers are slower than its senders, or there are none"
            )
        raise errors.ChannelFull(
            f"there is no memory for another message to {channel!r} of prefix {self.prefix!r}: "
            + self._lack(session, length)
        )

    def _lack(self, session: Session, length: int) -> str:
        """Which limit the last message met, of `length` bytes, and the remedy."""
        store = session.store
        if store.lack == MESSAGES:
            limit = store.layout.message_memory
            return (
                f"message_memory={limit} is used up ({size(store.words[S_LIVE] * WORD)} of "
                f"{size(limit)} in use, and the message takes {size(length)} and more). Add "
                "receivers, or raise message_memory in all processes"
            )
        return store.why_no_channel() if store.lack == CHANNELS else store.shortage()

    def _too_large(self, channel: str, size: int) -> str:
        return (
            f"the message to {channel!r} takes {size} bytes, and max_message_size is "
            f"{self.max_message_size}"
        )

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Make `channel` a member, or renew its membership. Raises LimitReached."""
        channel = check_channel(channel)
        names = check_group(group).encode("ascii"), channel.encode("ascii")
        session = self.attach()
        now = clock.monotonic()
        session.section(session.groups.add, *names, now, now + self.group_expiry)
        queue, local = split(channel)
        inbox = session.attachment.inboxes.get(queue)
        if inbox is not None and inbox.suspects:
            inbox.visited(local)  # its consumer lives: it renews what it has

    def group_discard(self, group: str, channel: str) -> None:
        """End a membership, if there is one."""
        names = check_group(group).encode("ascii"), check_channel(channel).encode("ascii")
        session = self.attach()
        session.section(session.groups.discard, *names)

    def group_channels(self, group: str) -> list[str]:
        """The members whose membership has not run out and whose readers are not known dead."""
        name = check_group(group).encode("ascii")
        session = self.attach()
        now = clock.monotonic()
        if now >= session.due[()]:
            self.upkeep(session, now)
        found: list[str] = session.section(session.groups.channels, name, now)
        return found

    def group_send(
        self, group: str, message: dict[str, Any], progress: Broadcast | None = None
    ) -> None:
        """Send to every member. What does not fit is dropped and counted.

        Each destination queue gets one record, whatever the number of its local parts. A call with
        the same `progress` goes on where LockBusy interrupted the last one.
        """
        name = check_group(group).encode("ascii")
        session = self.session or self.attach()  # which may lower max_message_size
        body = self.codec.encode(message)
        if len(body) > self.max_message_size:
            raise errors.MessageTooLarge(self._too_large(group, len(body)))
        now = clock.monotonic()
        if now >= session.due[()]:
            session = self.after_upkeep(session, now)
        progress = progress or Broadcast()
        while progress.targets is None or progress.sent < len(progress.targets):
            try:
                rings, dropped = session.section(
                    self._broadcast, session, name, body, now, progress
                )
            except UnknownCapacity as unknown:
                self.capacities.look_up(unknown.channels)
                continue
            for row, waiter_id in rings:
                session.ring(row, waiter_id)
            for target, reason in dropped:
                queue = target.queue.decode("ascii")
                why = self._lack(session, len(body)) if reason == MEMORY else ""
                session.attachment.log_drop(reason, f"group {group!r}, channel {queue!r}", why)

    def _broadcast(
        self, session: Session, group: bytes, body: bytes, now: float, progress: Broadcast
    ) -> tuple[list[tuple[int, int]], list[tuple[Target, int]]]:
        """Inside a section: put one message into the next few queues of a group's plan.

        Returns the rings that are due (row, waiter id), and what was dropped (target, reason).
        """
        store = session.store
        targets = progress.targets
        if targets is None:
            targets = progress.targets = self._plan(session, group, now)
        rings, dropped = [], []
        gone = False
        for target in targets[progress.sent : progress.sent + _TARGETS_AT_ONCE]:
            waiter_id = store.put(target, body, now)
            if waiter_id > 0:
                rings.append((target.row, waiter_id))
            elif waiter_id == FULL or waiter_id == NO_MEMORY:
                reason = CAPACITY if waiter_id == FULL else MEMORY
                store.count_drop(target.row, reason)
                dropped.append((target, reason))
            else:
                gone = gone or waiter_id == GONE
        if gone:
            session.fanouts.pop(group, None)  # the next broadcast plans without the dead
        progress.sent += _TARGETS_AT_ONCE
        return rings, dropped

    def _plan(self, session: Session, group: bytes, now: float) -> list[Target]:
        """The targets of a broadcast, kept while the group does not change."""
        fanout = session.fanouts.get(group)
        if fanout is not None and session.planner.current(fanout.plan, now):
            if not fanout.plan.changed:  # else an interruption came before its targets were made
                return fanout.targets
        plan = session.planner.plan(group, now, None if fanout is None else fanout.plan)
        if plan is None:
            session.fanouts.pop(group, None)
            return []
        if fanout is None or fanout.plan is not plan:
            fanout = Fanout(plan, self.expiry)
            if len(session.fanouts) >= CACHED:
                session.fanouts.clear()
            session.fanouts[group] = fanout
        fanout.update(session.store)
        return fanout.targets

    # -- flush and statistics ---------------------------------------------------------------------

    def flush(self) -> None:
        """Forget all messages and groups, for every client, when it returns."""
        try:
            session = self.attach()
        except CorruptStore:
            session = self.attach(flush=True)
        session.attachment.flush(self._waits)
        session.fanouts.clear()

    def global_statistics(self) -> dict[str, Any]:
        """The six figures of the specification for the whole layer."""
        session = self.attach()
        now = clock.monotonic()
        store = session.store
        session.section(store.sweep, now)
        words = store.words
        pending, oldest = 0, 0.0
        for row in store.queues.rows():
            pending += words[row + Q_PENDING]
            oldest = max(oldest, store.front(row, now).age(now))
        sent = words[S_SEQ] - words[S_SEQ_BASE]
        since = store.doubles[S_SINCE]
        return self._statistics("", now, _Figures(since, sent, words[S_REFUSED], pending, oldest))

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The six figures of the specification for the queue that `channel` is kept in."""
        queue = split(check_channel(channel))[0]
        session = self.attach()
        now = clock.monotonic()
        store = session.store
        row = session.section(store.find_unexpired, Target(queue.encode("ascii")), now)
        if not row:
            return self._statistics(queue, now, _Figures(now, 0, 0, 0, 0.0))
        words = store.words
        figures = _Figures(
            store.doubles[row + Q_CREATED],
            words[row + Q_SENT],
            words[row + Q_REFUSED],
            words[row + Q_PENDING],
            store.front(row, now).age(now),
        )
        return self._statistics(queue, now, figures)

    def stats(self) -> Stats:
        """All figures of the layer, without taking the lock. Rates are counted since the last call
        that is at least a second ago, or else since the beginning."""
        session = self.attach()
        snapshot = Snapshot(View(self.prefix, session.attachment))
        before = self._totals
        if before is None or snapshot.now - before.at >= 1.0:
            self._totals = snapshot.totals()
        found = snapshot.stats(before)
        return replace(found, implementation=PURE) if session.usual is NEVER else found

    def _statistics(self, name: str, now: float, figures: _Figures) -> dict[str, Any]:
        """The figures by the names of the specification. Rates are those since the last call for
        the same name if that is a second ago, else since the beginning."""
        # Read without the lock: a change may be going on, or the memory be damaged.
        sent, age = max(figures.sent, 0), figures.oldest if 0 <= figures.oldest < math.inf else 0.0
        at, sent_then, refused_then = self._samples.get(name, (figures.since, 0, 0))
        if sent < sent_then or at <= figures.since:
            at, sent_then, refused_then = figures.since, 0, 0  # there was a flush in between
        period = max(now - at, 1e-9)
        if now - at >= 1.0:
            if len(self._samples) >= CACHED:
                self._samples.clear()
            self._samples[name] = (now, sent, figures.refused)
        return {
            "messages_count": sent,
            "messages_count_per_second": (sent - sent_then) / period,
            "messages_pending": figures.pending,
            "messages_max_age": age,
            "channel_full_count": figures.refused,
            "channel_full_count_per_second": (figures.refused - refused_then) / period,
        }
