"""Waiter ids and waiter sets: which waiter to ring when a message arrives. Part of the store.

It keeps state and must not wake anybody: each queue has a set with a bit for each waiter id. A
sender takes a bit out under the lock, and rings the waiter's doorbell (`segment.doorbell`) after it
has released the lock. The senders that wait for room have sets of the same kind (`room`).
"""

from __future__ import annotations

from .layout import (
    MAX_WAITERS,
    P_GENERATION,
    Q_WAITING,
    W_GENERATION,
    W_PROCESS,
    W_PROCESS_GENERATION,
    W_TAKEN,
    WAITER_SET_WORDS,
    WAITER_WORDS,
    WORD,
    Layout,
)
from .memory import Buffer, Memory


class Waiters(Memory):
    """Waiters by their ids, and the waiter set of each queue."""

    def __init__(self, buffer: Buffer, layout: Layout) -> None:
        super().__init__(buffer, layout)
        # One more than the id that this process picked last, so that each gets its share. The
        # compiled path uses it, too.
        self.turn = memoryview(bytearray(WORD)).cast("Q")

    def add_waiter(self, process: int) -> tuple[int, int] | None:
        """Take a waiter id for `process`: (waiter_id, generation), or None if all are in use.

        The caller opens the doorbell that these name, and then calls `publish_waiter`.
        """
        words = self.words
        for waiter_id, row in enumerate(self.waiter_rows()[1:], 1):  # 0 stands for nobody
            if not words[row + W_PROCESS_GENERATION]:
                generation = self.advance_counter()
                words[row + W_PROCESS] = process
                words[row + W_TAKEN] = generation
                words[row + W_PROCESS_GENERATION] = words[process + P_GENERATION]
                return waiter_id, generation
        return None

    def publish_waiter(self, waiter_id: int, generation: int) -> None:
        """Make a waiter id known as one whose doorbell is open."""
        self.words[self.waiter_row(waiter_id) + W_GENERATION] = generation

    def remove_waiter(self, waiter_id: int, generation: int) -> None:
        """Free a waiter id, unless it has been given to another waiter since. Its bits stay in the
        waiter sets until a call finds them."""
        row = self.waiter_row(waiter_id)
        if self.words[row + W_TAKEN] == generation:
            self._free_waiter(row)

    def _free_waiter(self, row: int) -> None:
        words = self.words
        words[row + W_GENERATION] = 0
        words[row + W_TAKEN] = 0
        words[row + W_PROCESS_GENERATION] = 0

    def waiter_row(self, waiter_id: int) -> int:
        """Return the reference of the row of a waiter id."""
        return self.layout.waiters + waiter_id * WAITER_WORDS

    def waiter_rows(self) -> range:
        """Return the references of all rows, by waiter id."""
        return range(self.waiter_row(0), self.waiter_row(MAX_WAITERS), WAITER_WORDS)

    def waiter_generation(self, waiter_id: int) -> int:
        """Return the generation that, with the id, names a waiter's doorbell; 0 if it is gone."""
        return self.words[self.layout.waiters + waiter_id * WAITER_WORDS + W_GENERATION]

    def is_waiter(self, waiter_id: int, generation: int) -> bool:
        """Return whether an id still belongs to the waiter that got it with `generation`."""
        return self.waiter_generation(waiter_id) == generation == self.waiter_taken(waiter_id)

    def waiter_taken(self, waiter_id: int) -> int:
        """Return the generation that was given out with an id; its doorbell may not be open yet."""
        return self.words[self.waiter_row(waiter_id) + W_TAKEN]

    # `of` is where in the row the set begins, with its summary.

    def park(self, row: int, waiter_id: int, of: int = Q_WAITING) -> None:
        """Enter a waiter id into the waiter set of the queue at `row`."""
        words = self.words
        of += row
        word = waiter_id >> 6
        # The summary first: a death in between then leaves a summary bit without a waiter, which is
        # harmless, and not a waiter that `pick` would not see.
        words[of] |= 1 << word
        words[of + 1 + word] |= 1 << (waiter_id & 63)

    def unpark(self, row: int, waiter_id: int, of: int = Q_WAITING) -> bool:
        """Take a waiter id out of the waiter set; False if a sender did, whose ring is coming."""
        words = self.words
        of += row
        word, bit = waiter_id >> 6, 1 << (waiter_id & 63)
        bits = words[of + 1 + word]
        if not bits & bit:
            return False
        words[of + 1 + word] = bits & ~bit
        if bits == bit:
            words[of] &= ~(1 << word)
        return True

    def pick(self, row: int, of: int = Q_WAITING) -> int:
        """Take a waiter id out of the set of the queue at `row`, in turn; 0 if the set is empty."""
        words = self.words
        of += row
        waiting = words[of]
        if not waiting & (waiting - 1) and 0 < waiting < 1 << WAITER_SET_WORDS:
            word = waiting.bit_length() - 1
            bits = words[of + 1 + word]
            if bits and not bits & (bits - 1):  # the only one, whose turn it is in any case
                words[of + 1 + word] = 0
                words[of] = 0
                waiter_id = word << 6 | bits.bit_length() - 1
                self.turn[0] = waiter_id + 1
                return waiter_id
        turn = self.turn[0]
        while waiting:
            first = turn >> 6
            word = waiting >> first << first or waiting
            word = (word & -word).bit_length() - 1
            bits = words[of + 1 + word] if word < WAITER_SET_WORDS else 0
            if not bits:
                waiting &= ~(1 << word)  # left by a process that was killed while it parked
                words[of] = waiting
                continue
            bit = bits >> (turn & 63) << (turn & 63) if word == first else bits
            if not bit:
                turn = (first + 1) << 6  # all in this word have had their turn
                continue
            bit &= -bit
            words[of + 1 + word] = bits ^ bit
            if bits == bit:
                words[of] = waiting ^ (1 << word)
            waiter_id = word << 6 | bit.bit_length() - 1
            self.turn[0] = waiter_id + 1
            return waiter_id
        return 0

    def prune(self, row: int, of: int = Q_WAITING) -> None:
        """Take the ids of waiters that are gone out of the set of the queue at `row`."""
        words = self.words
        at = row + of
        for word in range(WAITER_SET_WORDS):
            bits = words[at + 1 + word]
            while bits:
                waiter_id = word << 6 | (bits & -bits).bit_length() - 1
                if not self.waiter_generation(waiter_id):
                    self.unpark(row, waiter_id, of)
                bits &= bits - 1
            if not words[at + 1 + word]:
                words[at] &= ~(1 << word)
