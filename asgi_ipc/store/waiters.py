"""Waiter ids and waiter sets: who is to be rung when a message comes. Part of the store.

Only the state is here: a bit for each waiter in a set for each queue. The bells that wake are
`doorbell`. A sender takes a bit out under the lock, and rings when it has let go of it.
"""

from __future__ import annotations

from .layout import (
    MAX_WAITERS,
    P_GENERATION,
    Q_PENDING,
    Q_WAITERS,
    Q_WAITING,
    W_GENERATION,
    W_PROCESS,
    W_PROCESS_GENERATION,
    W_TAKEN,
    WAITER_SET_WORDS,
    WAITER_WORDS,
)
from .memory import Memory


class Waiters(Memory):
    """Waiters by id, and the waiter set of each queue."""

    _turn = 0  # the waiter after the one that this process rang last: each gets its share

    def add_waiter(self, process: int) -> tuple[int, int] | None:
        """Take a waiter id for `process`: (id, generation), or None when all are in use.

        The caller opens the doorbell that these name, and then calls `publish_waiter`.
        """
        words = self.words
        for index in range(1, MAX_WAITERS):  # 0 stands for nobody
            at = self.layout.waiters + index * WAITER_WORDS
            if not words[at + W_PROCESS_GENERATION]:
                generation = self.advance_counter()
                words[at + W_PROCESS] = process
                words[at + W_TAKEN] = generation
                words[at + W_PROCESS_GENERATION] = words[process + P_GENERATION]
                return index, generation
        return None

    def publish_waiter(self, index: int, generation: int) -> None:
        self.words[self.layout.waiters + index * WAITER_WORDS + W_GENERATION] = generation

    def remove_waiter(self, index: int, generation: int) -> None:
        """Give a waiter id back, if it still is of that generation. Its bits go as they are met."""
        words = self.words
        at = self.layout.waiters + index * WAITER_WORDS
        if words[at + W_TAKEN] == generation:
            words[at + W_GENERATION] = 0
            words[at + W_TAKEN] = 0
            words[at + W_PROCESS_GENERATION] = 0

    def waiter_generation(self, index: int) -> int:
        """The generation of a waiter, which with its id names its doorbell; 0 if it is gone."""
        return self.words[self.layout.waiters + index * WAITER_WORDS + W_GENERATION]

    def is_waiter(self, index: int, generation: int) -> bool:
        """Whether a waiter id still is that of whoever was given it with `generation`."""
        return self.waiter_generation(index) == generation == self.waiter_taken(index)

    def waiter_taken(self, index: int) -> int:
        """The generation that was given out with a waiter id, its doorbell open yet or not."""
        return self.words[self.layout.waiters + index * WAITER_WORDS + W_TAKEN]

    def park(self, row: int, waiter: int) -> None:
        """Put `waiter` into the waiter set of the queue at `row`."""
        words = self.words
        word = waiter >> 6
        # The summary first: a death in between leaves a bit that leads nowhere, not a deaf waiter.
        words[row + Q_WAITING] |= 1 << word
        words[row + Q_WAITERS + word] |= 1 << (waiter & 63)

    def unpark(self, row: int, waiter: int) -> bool:
        """Take `waiter` out of the waiter set; False if it was out: a ring is under way to it."""
        words = self.words
        word, bit = waiter >> 6, 1 << (waiter & 63)
        bits = words[row + Q_WAITERS + word]
        if not bits & bit:
            return False
        words[row + Q_WAITERS + word] = bits & ~bit
        if bits == bit:
            words[row + Q_WAITING] &= ~(1 << word)
        return True

    def pick(self, row: int) -> int:
        """Take one waiter out of the set of the queue at `row`, in turn; 0 if it is empty."""
        words = self.words
        waiting = words[row + Q_WAITING]
        if not waiting & (waiting - 1) and 0 < waiting < 1 << WAITER_SET_WORDS:
            word = waiting.bit_length() - 1
            bits = words[row + Q_WAITERS + word]
            if bits and not bits & (bits - 1):  # only one waits: it is the next, in any order
                words[row + Q_WAITERS + word] = 0
                words[row + Q_WAITING] = 0
                waiter = word << 6 | bits.bit_length() - 1
                self._turn = waiter + 1
                return waiter
        turn = self._turn
        while waiting:
            first = turn >> 6
            word = waiting >> first << first or waiting
            word = (word & -word).bit_length() - 1
            bits = words[row + Q_WAITERS + word] if word < WAITER_SET_WORDS else 0
            if not bits:
                waiting &= ~(1 << word)  # whoever was killed while it parked left this
                words[row + Q_WAITING] = waiting
                continue
            bit = bits >> (turn & 63) << (turn & 63) if word == first else bits
            if not bit:
                turn = (first + 1) << 6  # all in this word have had their turn
                continue
            bit &= -bit
            words[row + Q_WAITERS + word] = bits ^ bit
            if bits == bit:
                words[row + Q_WAITING] = waiting ^ (1 << word)
            waiter = word << 6 | bit.bit_length() - 1
            self._turn = waiter + 1
            return waiter
        return 0

    def prune(self, row: int) -> None:
        """Take waiters that are gone out of the set of the queue at `row`."""
        words = self.words
        for word in range(WAITER_SET_WORDS):
            bits = words[row + Q_WAITERS + word]
            while bits:
                waiter = word << 6 | (bits & -bits).bit_length() - 1
                if not self.waiter_generation(waiter):
                    self.unpark(row, waiter)
                bits &= bits - 1
            if not words[row + Q_WAITERS + word]:
                words[row + Q_WAITING] &= ~(1 << word)

    def park_if_empty(self, row: int, waiter: int) -> bool:
        """Park `waiter` at the queue at `row`, or return True if there is a message in it."""
        if self.words[row + Q_PENDING]:
            return True
        self.park(row, waiter)
        return False
