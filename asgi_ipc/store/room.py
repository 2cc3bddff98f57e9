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
refused or parks behind them, unless the queue has room for all of them and for more. If the room is
still free GRACE seconds after that, the sender that was rung is dead or stopped: the next one is
rung, and others may send. The sweep checks this, too, and each sender that waits checks it once a
second.
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
_NEXT = Q_NEXT_SENDER - Q_SENDING  # and the word with the turn
_ID, _RUNG = 0xFFFF, 16  # in its lower bits; above them, how many were rung and have not answered

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
        the segment, so that each sender gets its turn, whichever processes make room: it waits for
        at most one message of each other thread or loop."""
        words, turn = self.words, self.turn
        mine, word = turn[0], words[place + _NEXT]
        turn[0] = (word & _ID) % MAX_WAITERS
        waiter_id = self.pick(place, 0)
        words[place + _NEXT], turn[0] = (word & ~_ID) | turn[0], mine
        if waiter_id:
            self._count_rung(place, 1)
        return waiter_id

    def take_back(self, place: int) -> None:
        """A sender that was rung has answered, or waits again."""
        self._count_rung(place, -1)

    def _count_rung(self, place: int, more: int) -> None:
        """Count senders that were rung and have not answered."""
        word = self.words[place + _NEXT]
        rung = min(max((word >> _RUNG) + more, 0), _ID)
        self.words[place + _NEXT] = rung << _RUNG | (word & _ID)

    def is_enough(self, place: int, capacity: int) -> bool:
        """Return whether a queue of this capacity has room for all senders that wait or were rung,
        and for another message: their channels may have a smaller capacity."""
        words = self.words
        waiting = words[place + _NEXT] >> _RUNG
        for bits in words[place + 1 : place + 1 + WAITER_SET_WORDS]:
            waiting += bin(bits).count("1")
        return (words[_count(place)] & COUNT) + waiting < capacity

    def offer(self, place: int) -> None:
        """There is room at a crowded place: note that a sender has to be rung."""
        waiter_id = self.pick_sender(place)
        if waiter_id:
            self.rings.append((place, waiter_id))

    def answer(self, place: int, has_room: bool, was_rung: bool = True) -> None:
        """A sender that was rung has sent or given up: offer the remaining room to the next one."""
        self.doubles[place + _OFFERED] = 0.0
        if was_rung:
            self.take_back(place)
        if not self.words[place]:
            self.words[_count(place)] &= COUNT
            self.words[place + _NEXT] &= _ID  # who was rung and died is counted no longer
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
