"""The operations of both contracts, written once: the layers around it only differ in how to wait.

Everything but `receive` (in `receiving`) never waits and is a plain call. `receive` is a coroutine
that waits at one place, ``await waiter.wait(...)``. The asyncio waiter suspends there; the blocking
one sleeps in the kernel and never suspends, so that its facade runs the coroutine to its end by
hand.
"""

from __future__ import annotations

import math
import time
from typing import Any

from .. import errors
from ..errors import CorruptStore, NotAChannel
from ..inspection.snapshot import Snapshot, Totals
from ..inspection.view import View
from ..names import check_channel, check_group, split
from ..statistics import Stats
from ..store.layout import (
    CAPACITY,
    L_EXPIRES,
    L_SENT,
    MEMORY,
    Q_CREATED,
    Q_FIRST,
    Q_PENDING,
    Q_REFUSED,
    Q_SENT,
    S_REFUSED,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
)
from ..store.queues import FULL, GONE, NO_MEMORY, Target
from .fanout import Broadcast, Fanout
from .receiving import Receiving
from .session import CACHED, Session

_TARGETS_AT_ONCE = 64  # queues that a broadcast reaches in one section


class Core(Receiving):
    """The operations of one layer on the attachment of its process."""

    _totals: Totals | None = None  # those that the next rates are counted from

    # -- sending ----------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Append `message` to `channel` (A1, B1, M8: never blocks).

        Raises InvalidName, InvalidMessage, MessageTooLarge, ChannelFull, NotAChannel.
        """
        session = self.session or self.attach()
        try:
            target = session.targets[channel]
        except (KeyError, TypeError):
            target = self._target(session, channel)
        body = self.encode(message)
        if len(body) > self.max_message_size:
            raise errors.MessageTooLarge(self._too_large(channel, len(body)))
        now = time.monotonic()
        if now >= session.attachment.due:
            self.upkeep(session, now)
        waiter = session.section_of_three(session.put, target, body, now)
        if waiter:
            if waiter < 0:
                self._refuse(session, channel, waiter)
            session.ring(target.row, waiter)

    def _target(self, session: Session, channel: str) -> Target:
        """Where messages for `channel` go; looked up once for each name."""
        check_channel(channel)
        queue, local = split(channel)
        capacity = self.capacity_of(channel)
        target = Target(queue.encode("ascii"), local.encode("ascii"), capacity, self.expiry)
        session.section(self._refuse_group, session, target, channel)
        session.remember(session.targets, channel, target)
        return target

    def _refuse_group(self, session: Session, target: Target, channel: str) -> None:
        """Inside a section: a name that no channel has yet and a group bears is a mistake."""
        store = session.store
        if not store.find(target) and store.groups.find(target.queue):
            raise NotAChannel(
                f"{channel!r} is the name of a group, and no channel has that name: to reach its "
                "members use group_send (send_group in Channels 1). A channel that is to have the "
                "name of a group must be received on first"
            )

    def _refuse(self, session: Session, channel: str, why: int) -> None:
        if why == FULL:
            raise errors.ChannelFull(
                f"channel {channel!r} is at its capacity of {self.capacity_of(channel)} messages: "
                "its readers are slower than its senders, or there are none"
            )
        store = session.store
        store.words[S_REFUSED] += 1
        raise errors.ChannelFull(
            f"no memory for another message to {channel!r}: message_memory="
            f"{store.layout.message_memory} of prefix {self.prefix!r} is used up, or the machine "
            "has no more shared memory (Docker: --shm-size)"
        )

    def _too_large(self, channel: str, size: int) -> str:
        return (
            f"the message to {channel!r} takes {size} bytes, and max_message_size is "
            f"{self.max_message_size}"
        )

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Make `channel` a member, or renew its membership (A5). Raises LimitReached."""
        names = check_group(group).encode("ascii"), check_channel(channel).encode("ascii")
        session = self.attach()
        now = time.monotonic()
        session.section(session.groups.add, *names, now, now + self.group_expiry)

    def group_discard(self, group: str, channel: str) -> None:
        """End a membership, if there is one (A5)."""
        names = check_group(group).encode("ascii"), check_channel(channel).encode("ascii")
        session = self.attach()
        session.section(session.groups.discard, *names)

    def group_channels(self, group: str) -> list[str]:
        """The members whose readers live, as far as is known, and whose time is not over (A5)."""
        name = check_group(group).encode("ascii")
        session = self.attach()
        now = time.monotonic()
        if now >= session.attachment.due:
            self.upkeep(session, now)
        found: list[str] = session.section(session.groups.channels, name, now)
        return found

    def group_send(
        self, group: str, message: dict[str, Any], progress: Broadcast | None = None
    ) -> None:
        """Send to every member; what does not fit is dropped and counted (A5, B2, M7).

        Each destination queue gets one record, whatever the number of its local parts. Called
        again with the same `progress` it goes on where LockBusy interrupted it.
        """
        name = check_group(group).encode("ascii")
        body = self.codec.encode(message)
        if len(body) > self.max_message_size:
            raise errors.MessageTooLarge(self._too_large(group, len(body)))
        session = self.session or self.attach()
        now = time.monotonic()
        if now >= session.attachment.due:
            self.upkeep(session, now)
        progress = progress or Broadcast()
        while progress.targets is None or progress.sent < len(progress.targets):
            progress.targets, rings, dropped = session.section(
                self._broadcast, session, name, progress.targets, progress.sent, body, now
            )
            progress.sent += _TARGETS_AT_ONCE
            for row, waiter in rings:
                session.ring(row, waiter)
            for target, reason in dropped:
                queue = target.queue.decode("ascii")
                session.attachment.log_drop(reason, f"group {group!r}, channel {queue!r}")

    def _broadcast(
        self,
        session: Session,
        group: bytes,
        targets: list[Target] | None,
        first: int,
        body: bytes,
        now: float,
    ) -> tuple[list[Target], list[tuple[int, int]], list[tuple[Target, int]]]:
        """Inside a section: put one message into the next few queues of a group's plan."""
        store = session.store
        if targets is None:
            targets = self._plan(session, group, now)
        rings, dropped = [], []
        gone = False
        for target in targets[first : first + _TARGETS_AT_ONCE]:
            waiter = store.put(target, body, now)
            if waiter > 0:
                rings.append((target.row, waiter))
            elif waiter == FULL or waiter == NO_MEMORY:
                reason = CAPACITY if waiter == FULL else MEMORY
                store.count_drop(target.row, reason)
                dropped.append((target, reason))
            else:
                gone = gone or waiter == GONE
        if gone:
            session.fanouts.pop(group, None)  # make it anew, without the dead
        return targets, rings, dropped

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
        """Forget all messages and groups, for every client, when it returns (A7)."""
        try:
            session = self.attach()
        except CorruptStore:
            session = self.attach(flush=True)
        session.attachment.flush(self._patience, self.options.lock_timeout)
        session.fanouts.clear()

    def global_statistics(self) -> dict[str, Any]:
        """The six figures of the specification for the whole layer (A8)."""
        session = self.attach()
        now = time.monotonic()
        store = session.store
        session.section(store.sweep, now)
        words, doubles = store.words, store.doubles
        pending, oldest = 0, now
        for row in store.queues.rows():
            pending += words[row + Q_PENDING]
            oldest = min(oldest, self._sent_at(session, row, now))
        since = doubles[S_SINCE]
        count = words[S_SEQ] - words[S_SEQ_BASE]
        return self._statistics("", now, since, count, words[S_REFUSED], pending, now - oldest)

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The six figures for the queue that `channel` is kept in (A8)."""
        queue = split(check_channel(channel))[0]
        session = self.attach()
        now = time.monotonic()
        store = session.store
        target = Target(queue.encode("ascii"))
        row = session.section(store.find_unexpired, target, now)
        if not row:
            return self._statistics(queue, now, now, 0, 0, 0, 0.0)
        words = store.words
        return self._statistics(
            queue,
            now,
            store.doubles[row + Q_CREATED],
            words[row + Q_SENT],
            words[row + Q_REFUSED],
            words[row + Q_PENDING],
            now - self._sent_at(session, row, now),
        )

    def stats(self) -> Stats:
        """All figures of the layer, without taking the lock. Rates are those since the last call
        if that is a second ago, else those since the one before, or since the beginning."""
        attachment = self.attach().attachment
        snapshot = Snapshot(View(self.prefix, attachment))
        before = self._totals
        if before is None or snapshot.now - before.at >= 1.0:
            self._totals = snapshot.totals()
        return snapshot.stats(before)

    def _sent_at(self, session: Session, row: int, now: float) -> float:
        """When the oldest message of a queue was sent; now if there is none. A glance, unlocked."""
        store = session.store
        at = store.words[row + Q_FIRST]
        if not store.log.start <= at < store.log.end or store.doubles[at + L_EXPIRES] <= now:
            return now
        return float(store.doubles[at + L_SENT])

    def _statistics(
        self, name: str, now: float, since: float, count: int, full: int, pending: int, age: float
    ) -> dict[str, Any]:
        """Rates are those since the last call for the same name if that is a second ago, else
        since the beginning."""
        # Read without the lock: a change may be going on, or the memory be damaged.
        count, age = max(count, 0), age if 0 <= age < math.inf else 0.0
        at, count_then, full_then = self._samples.get(name, (since, 0, 0))
        if count < count_then or at < since:
            at, count_then, full_then = since, 0, 0  # there was a flush in between
        period = max(now - at, 1e-9)
        if now - at >= 1.0:
            if len(self._samples) >= CACHED:
                self._samples.clear()
            self._samples[name] = (now, count, full)
        return {
            "messages_count": count,
            "messages_count_per_second": (count - count_then) / period,
            "messages_pending": pending,
            "messages_max_age": age,
            "channel_full_count": full,
            "channel_full_count_per_second": (full - full_then) / period,
        }
