"""Wakes: whether to ring another waiter while a ring is under way. Part of the store.

A wakeup takes longer than a quick receiver needs for several messages. If every message rang a
waiter, each would come for one message or for none, and sleep again. So a ring is left out where
the queue is *quick* and a ring is under way. It is then *owed*: the next receiver that comes to the
queue rings another one, if it finds that more messages and more waiters are left.

The queue is quick if its last receiver came back within QUICK seconds of its last message. A queue
whose receivers work longer is not quick: there each message rings a waiter, because all are needed.

All of this is in three words of the queue's row, which are hints. A ring counts as under way for
UNDER_WAY seconds at most, in case its waiter died or is busy. Any values may be there: a wrong one
costs rings that were not needed, or a wait that ends with the next message, or with the look that
each waiter takes once a second. But a ring that finds no waiter must not leave RUNG behind.
"""

from __future__ import annotations

from .layout import COUNT, Q_OWED, Q_PENDING, Q_QUICK, Q_RUNG, Q_WAITING
from .room import Room

QUICK = 50e-6  # seconds; less than a wakeup takes
UNDER_WAY = 0.002  # seconds after which a ring that nobody answered counts no longer
WOKEN = 1 << 16  # added to the id of a waiter that was parked and comes back,
LEAVING = 1 << 17  # and this as well if it parks no more where it finds nothing


class Wakes(Room):
    """The waiters at queues, and the rings that are due to them."""

    def ring_one(self, row: int, now: float) -> int:
        """A message came to the queue at `row`, which has waiters: return the one to ring, or 0."""
        words, doubles = self.words, self.doubles
        # NaN and future times do not count as under way either.
        if words[row + Q_QUICK] and 0 <= now - doubles[row + Q_RUNG] < UNDER_WAY:
            words[row + Q_OWED] = 1
            return 0
        return self._ring_next(row, now)

    def _ring_next(self, row: int, now: float) -> int:
        waiter_id = self.pick(row)
        self.doubles[row + Q_RUNG] = now if waiter_id else 0.0
        return waiter_id

    def note_take(self, row: int, now: float, taken: float, waiter_id: int) -> None:
        """A receiver that may have slept, or one that finds a ring owed, has taken a message.

        `taken`: when it took its last one; 0.0 if it has found the queue empty since. `waiter_id`:
        with WOKEN (and LEAVING) if it was parked. It may still be parked, if it was not a ring
        that woke it.
        """
        words, doubles = self.words, self.doubles
        woken = waiter_id >= WOKEN
        if woken:
            self.unpark(row, waiter_id % WOKEN)
        if taken:
            words[row + Q_QUICK] = 0 <= now - taken < QUICK
        if words[row + Q_OWED]:
            if not woken and words[row + Q_QUICK] and 0 <= now - doubles[row + Q_RUNG] < UNDER_WAY:
                return  # the waiter that was rung will answer it
            if words[row + Q_PENDING] & COUNT and words[row + Q_WAITING]:
                waiter_id = self._ring_next(row, now)
                if waiter_id:
                    self.rings.append((row, waiter_id))
                return  # more may be owed: the next receiver answers it
            words[row + Q_OWED] = 0
        if woken:
            doubles[row + Q_RUNG] = 0.0

    def pick_another(self, row: int) -> int:
        """Return the waiter to ring at the queue at `row` in place of one that was rung, or 0."""
        waiter_id = self.pick(row)
        if not waiter_id:
            self.forget_ring(row)
        return waiter_id

    def forget_ring(self, row: int) -> None:
        """The last ring for the queue at `row` found no waiter."""
        self.doubles[row + Q_RUNG] = 0.0

    def park_if_empty(self, row: int, waiter_id: int) -> bool:
        """Park a waiter id at the queue at `row`, or return True if a message is pending there."""
        if self.words[row + Q_PENDING] & COUNT:
            return True
        self.forget_ring(row)
        self.park(row, waiter_id)
        return False

    def note_look(self, row: int, now: float, taken: float, woken: bool) -> None:
        """A receiver has found nothing, and is about to park or to leave."""
        words = self.words
        if taken:
            words[row + Q_QUICK] = 0 <= now - taken < QUICK
        words[row + Q_OWED] = 0
        if woken:
            self.doubles[row + Q_RUNG] = 0.0
