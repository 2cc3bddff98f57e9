"""Room: which sender to ring when a full queue, or full memory, has room again. Part of the store.

A sender that may wait *parks* in the section that found no room: in the set of the queue, or in
that of the memory, which is in the header. A set is known by its *place*, the index of its first
word. While it is not empty, and until a sender that was rung has answered, the place is *crowded*:
CROWDED is added to the count that every send and take reads anyway (Q_PENDING, S_LIVE). A send at a
place that is not crowded, and a take where nobody waits, do nothing else for it.

A call that makes room takes one sender out of the set. A ring is then due: `rings` keeps it until
the section is over. The sender that is rung answers: it sends or gives up, and offers the room that
is left to the next one. So one ring is enough for any amount of room.

Room that becomes free is meant for the senders that wait. Another send finds it *promised*, and is
refused or parks behind them. If the room is still free GRACE seconds after that, the sender that
was rung is dead or stopped: the next one is rung, and others may send. The sweep checks this, too,
and each sender that waits checks it once a second.
"""

from __future__ import annotations

from .layout import (
    COUNT,
    CROWDED,
    MAX_WAITERS,
    Q_NEXT_SENDER,
    Q_OFFERED,
    Q_PENDING,
    Q_SENDING,
    QUEUE_WORDS,
    S_ENOUGH,
    S_LIVE,
    S_NEXT_SENDER,
    S_OFFERED,
    S_SENDING,
    WAITER_SET_WORDS,
    Layout,
)
from .memory import Buffer
from .waiters import Waiters

GRACE = 0.1  # seconds that room stays promised to a sender that was rung
_OFFERED = Q_OFFERED - Q_SENDING  # where in a set the time of a promise is
_NEXT = Q_NEXT_SENDER - Q_SENDING  # and whose turn it is

# The kinds of sender: one that does not wait; one that would; one that waits and was not rung; one
# that was rung.
AT_ONCE, NEW, PARKED, RUNG = range(4)

assert S_OFFERED - S_SENDING == _OFFERED > WAITER_SET_WORDS
assert S_NEXT_SENDER - S_SENDING == _NEXT


class Room(Waiters):
    """The senders that wait for room."""

    def __init__(self, buffer: Buffer, layout: Layout) -> None:
        super().__init__(buffer, layout)
        # Rings that are due, as (place, waiter id), until the section that made them due is over.
        self.rings: list[tuple[int, int]] = []

    def is_room(self, place: int) -> bool:
        """Return whether a ring is for a set of senders, and not for a queue's receivers."""
        queues = self.layout.queues
        return place == S_SENDING or (place - queues.base) % QUEUE_WORDS == Q_SENDING

    def park_sender(self, place: int, waiter_id: int) -> None:
        """Enter a waiter id into a set of senders. A death in between leaves a place that is
        crowded although nobody waits, which ends by itself."""
        self.words[_count(place)] |= CROWDED
        self.park(place, waiter_id, 0)

    def is_parked(self, place: int, waiter_id: int) -> bool:
        """Return whether a waiter id is in a set of senders; not if it was rung."""
        return self.words[place + 1 + (waiter_id >> 6)] >> (waiter_id & 63) & 1 != 0

    def pick_sender(self, place: int) -> int:
        """Take a waiter id out of a set of senders; 0 if the set is empty. The turn is stored in
        the segment, so each sender gets its turn no matter which processes make room. It waits for
        at most one message of each other thread or loop."""
        words, turn = self.words, self.turn
        mine = turn[0]
        turn[0] = words[place + _NEXT] % MAX_WAITERS
        waiter_id = self.pick(place, 0)
        words[place + _NEXT], turn[0] = turn[0], mine
        return waiter_id

    def offer(self, place: int) -> None:
        """There is room at a crowded place: note that a sender has to be rung."""
        waiter_id = self.pick_sender(place)
        if waiter_id:
            self.rings.append((place, waiter_id))

    def answer(self, place: int, has_room: bool) -> None:
        """A sender that was rung has sent or given up: offer the remaining room to the next one."""
        self.doubles[place + _OFFERED] = 0.0
        if not self.words[place]:
            self.words[_count(place)] &= COUNT
        elif has_room:
            self.offer(place)

    def is_promised(self, place: int, now: float, sender: int) -> bool:
        """Return whether the room at a crowded place is promised to others than `sender`. The first
        call that asks starts the time of the promise."""
        offered = self.doubles[place + _OFFERED]
        if sender == RUNG or (sender == PARKED and not offered):
            return False
        if not offered:
            self.doubles[place + _OFFERED] = now
            return True
        if 0 <= now - offered < GRACE:
            return True
        self.answer(place, True)  # for one that is dead or stopped
        return False

    def tend(self, place: int, now: float, has_room: bool) -> None:
        """Upkeep of a crowded place: look after senders that were rung and do not answer."""
        if has_room or not self.words[place]:
            self.is_promised(place, now, NEW)

    def has_memory(self) -> bool:
        """Return whether senders that wait for memory should try again."""
        return self.words[S_LIVE] & COUNT <= self.words[S_ENOUGH]


def _count(place: int) -> int:
    """The word with the count that shows whether a place is crowded."""
    return S_LIVE if place == S_SENDING else place - Q_SENDING + Q_PENDING
