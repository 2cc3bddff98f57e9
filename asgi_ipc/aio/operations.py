"""The operations of both contracts, written once. Layers differ only in how they wait.

Everything but `receive` (in `receiving`) and a send that may wait (in `sending`) is a plain call
that waits for nothing. This file must not know an event loop.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from .. import clock, errors
from ..attachment.inbox import Fed, wake_all
from ..errors import CorruptStore
from ..inspection.snapshot import Snapshot, Totals
from ..inspection.view import View
from ..names import check_channel, check_group, split
from ..options import UnknownCapacity
from ..statistics import Stats
from ..store.layout import (
    CAPACITY,
    COUNT,
    MEMORY,
    Q_CREATED,
    Q_PENDING,
    Q_REFUSED,
    Q_SENT,
    S_REFUSED,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
)
from ..store.native import PURE
from ..store.queues import FULL, GONE, Target
from .fanout import Broadcast, Fanout
from .sending import Sending
from .session import CACHED, NEVER, Session

_TARGETS_AT_ONCE = 64  # queues that a broadcast reaches in one section


class _Figures(NamedTuple):
    """What the statistics of the specification are made of."""

    since: float  # time when counting began
    sent: int
    refused: int
    pending: int
    oldest: float  # seconds that the oldest pending message has waited


def _reason(refused: int) -> int:
    """Why a message of a broadcast was dropped, by what `put` returned."""
    return CAPACITY if refused == FULL else MEMORY


class Core(Sending):
    """The operations of one layer on the attachment of its process."""

    _totals: Totals | None = None  # the next rates are counted from these

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> bool:
        """Make `channel` a member, or renew its membership. Returns whether it is a new member.
        Raises LimitReached."""
        channel = check_channel(channel)
        names = check_group(group).encode("ascii"), channel.encode("ascii")
        session = self.attach()
        # A channel of this layer is claimed even if nothing has been received on it yet: its
        # membership must end with this process, whenever that is killed.
        claim = None
        if self.own in channel:
            claim = partial(session.attachment.claim_queue, expiry=self.expiry)
        now = clock.monotonic()
        new: bool = session.section(session.groups.add, *names, now, now + self.group_expiry, claim)
        queue, local = split(channel)
        inbox = session.attachment.inboxes.get(queue)
        if inbox is not None and inbox.suspects:
            inbox.visited(local)  # its consumer lives: it renews its membership
        return new

    def group_discard(self, group: str, channel: str) -> None:
        """End a membership, if there is one."""
        names = check_group(group).encode("ascii"), check_channel(channel).encode("ascii")
        session = self.attach()
        session.section(session.groups.discard, *names)

    def group_channels(self, group: str) -> list[str]:
        """The members whose membership has not expired and whose reader is not known dead."""
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
        the same `progress` continues where LockBusy, or a turn for receivers, interrupted the last.
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
        feds: list[Fed] = []
        while not progress.is_done():
            drained = progress.drained
            try:
                rings, dropped = session.section(
                    self._broadcast, session, name, body, now, progress, feds
                )
            except UnknownCapacity as unknown:
                self.capacities.look_up(unknown.channels)
                continue
            finally:
                if feds:
                    wake_all(feds)
            for row, waiter_id in rings:
                session.ring(row, waiter_id)
            for target, lack in dropped:
                queue = target.queue.decode("ascii")
                why = self._lack(session, lack, len(body)) if lack != FULL else ""
                session.attachment.log_drop(
                    _reason(lack), f"group {group!r}, channel {queue!r}", why
                )
            if progress.drained != drained:
                return

    def _broadcast(
        self,
        session: Session,
        group: bytes,
        body: bytes,
        now: float,
        progress: Broadcast,
        feds: list[Fed],
    ) -> tuple[list[tuple[int, int]], list[tuple[Target, int]]]:
        """Inside a section: put one message into the next few queues of a group's plan.

        Returns the rings that are due (row, waiter id), and what was dropped (target, and what
        `put` returned).
        What inboxes of this process get is added to `feds`.
        """
        store = session.store
        targets = progress.targets
        if targets is None:
            targets = progress.targets = self._plan(session, group, now)
        rings: list[tuple[int, int]] = []
        dropped: list[tuple[Target, int]] = []
        gone = False
        for target in targets[progress.sent : progress.sent + _TARGETS_AT_ONCE]:
            waiter_id = store.put(target, body, now)
            if waiter_id == FULL and self._is_own(session, target):
                try:
                    drained = self._drain_full(session, target, now, feds)
                except UnknownCapacity:
                    if not rings and not dropped:
                        raise
                    break  # the next section begins with this one
                if drained and progress.turns and progress.drained != progress.sent:
                    progress.drained = progress.sent
                    break
                if drained:
                    waiter_id = store.put(target, body, now)
            progress.sent += 1
            if waiter_id > 0:
                rings.append((target.row, waiter_id))
            elif waiter_id == GONE:
                gone = True
            elif waiter_id < 0:
                store.count_drop(target.row, _reason(waiter_id))
                dropped.append((target, waiter_id))
        if gone:
            session.fanouts.pop(group, None)  # the next broadcast makes a plan without the dead
        return rings, dropped

    def _drain_full(self, session: Session, target: Target, now: float, feds: list[Fed]) -> bool:
        """Inside a section: a queue of this process is full. Drain it; False if that cannot be."""
        inbox = session.attachment.inboxes.get(target.queue.decode("ascii"))
        if inbox is None:
            return False
        session.store.count_refusal(target.row, -1)
        self._drain_own(target, inbox, now, feds)
        return True

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
            pending += words[row + Q_PENDING] & COUNT
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
            words[row + Q_PENDING] & COUNT,
            store.front(row, now).age(now),
        )
        return self._statistics(queue, now, figures)

    def stats(self) -> Stats:
        """All figures of the layer, without taking the lock. Rates are counted since the last call
        that is at least a second ago, or since the beginning."""
        session = self.attach()
        snapshot = Snapshot(View(self.prefix, session.attachment))
        before = self._totals
        if before is None or snapshot.now - before.at >= 1.0:
            self._totals = snapshot.totals()
        found = snapshot.stats(before)
        return replace(found, implementation=PURE) if session.usual is NEVER else found

    def _statistics(self, name: str, now: float, figures: _Figures) -> dict[str, Any]:
        """The figures by the names of the specification. Rates are those since the last call for
        the same name if that is a second ago, otherwise since the beginning."""
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
