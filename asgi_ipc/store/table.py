"""Rows of one size, found by name: the one hash table behind queues, groups and memberships.

Linear hashing: there are as many buckets as rows ever used, and bucket i's head is a word of row
i. A table so grows by one row and one bucket at a time, in a bounded step, and what it has
reserved is one high-water mark. Chains and the free list are derived; a row exists when its
generation is not 0, which is stored last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

from ..errors import CorruptStore
from .layout import (
    PAGE,
    R_BUCKET,
    R_CHAIN,
    R_GENERATION,
    R_KEY,
    T_CURSOR,
    T_FREE,
    T_HIGH,
    T_RESERVED,
    T_USED,
    WORD,
    TableMap,
)

Reserve = Callable[[int, int], bool]  # (offset, length) in bytes → whether they may be touched

_STEP = 64 * 1024  # bytes reserved at a time


class Table:
    """The rows of `table` in `words`; `buffer` is the same memory as bytes."""

    def __init__(
        self,
        what: str,
        buffer: Any,
        words: memoryview[int],
        table: TableMap,
        name_word: int,
        reserve: Reserve,
        salt_word: int | None = None,
    ) -> None:
        self.what = what
        self._buffer = buffer
        self._words = words
        self._name = name_word
        self._reserve = reserve
        self._salt_word = salt_word  # the word of a row that tells equal names apart
        self.state, self.base, self.row_words, self.max_rows = table

    # -- reading ----------------------------------------------------------------------------------

    @property
    def high(self) -> int:
        """Rows ever used since the last flush."""
        high = self._words[self.state + T_HIGH]
        if high > self.max_rows:
            raise CorruptStore(f"{self.what}: {high} rows in a table of {self.max_rows}")
        return high

    @property
    def used(self) -> int:
        return self._words[self.state + T_USED]

    def checked(self, row: int) -> int:
        """Return `row` if it is the reference of a row in use, else raise CorruptStore."""
        place = row - self.base
        if place < 0 or place % self.row_words or place // self.row_words >= self.high:
            raise CorruptStore(f"{self.what}: {row} is not the reference of a row")
        return row

    def name(self, row: int) -> bytes:
        length = self._words[row + R_KEY] & 0xFFFFFFFF
        start = (row + self._name) * WORD
        return bytes(self._buffer[start : start + min(length, 104)])

    def rows(self) -> Iterator[int]:
        """References of all rows in use."""
        words, width = self._words, self.row_words
        for row in range(self.base, self.base + self.high * width, width):
            if words[row + R_GENERATION]:
                yield row

    def find(self, name: bytes, salt: int = 0) -> int:
        """Return the reference of the row of `name` (and of `salt`, in its salt word), or 0."""
        high = self.high
        if not high:
            return 0
        words = self._words
        hashed = crc32(name, salt)
        key = hashed << 32 | len(name)
        row = words[self._bucket(hashed, high) + R_BUCKET]
        steps = 0
        while row:
            self.checked(row)
            if (
                words[row + R_KEY] == key
                and (self._salt_word is None or words[row + self._salt_word] == salt)
                and self.name(row) == name
            ):
                return row
            row = words[row + R_CHAIN]
            steps += 1
            if steps > high:
                raise CorruptStore(f"{self.what}: a hash chain goes round in a circle")
        return 0

    # -- changing: under the lock, with the dirty word set ----------------------------------------

    def has_room(self) -> bool:
        """Whether `insert` will find a row; reserves memory for it."""
        words, state = self._words, self.state
        if words[state + T_FREE]:
            return True
        high = self.high
        if high >= self.max_rows:
            return False
        start = self.base * WORD
        needed = (high + 1) * self.row_words * WORD
        reserved = words[state + T_RESERVED]
        if needed <= reserved:
            return True
        whole = (self.max_rows * self.row_words * WORD + PAGE - 1) // PAGE * PAGE
        upto = min(max(needed, reserved + max(_STEP, reserved // 4 // PAGE * PAGE)), whole)
        upto = (upto + PAGE - 1) // PAGE * PAGE
        if not self._reserve(start + reserved, upto - reserved):
            return False
        words[state + T_RESERVED] = upto
        return True

    def insert(self, name: bytes, generation: int, fields: dict[int, int], salt: int = 0) -> int:
        """Make the row of `name`, all words 0 but `fields`. `has_room` was asked before."""
        words, state, width = self._words, self.state, self.row_words
        row = words[state + T_FREE]
        if row:
            words[state + T_FREE] = words[self.checked(row) + R_CHAIN]
        else:
            high = self.high
            row = self.base + high * width
            words[row + R_GENERATION] = 0
            words[row + R_BUCKET] = 0
            words[state + T_HIGH] = high + 1
            self._split(high)
        for word in range(row + R_KEY + 1, row + width):
            words[word] = 0
        for field, value in fields.items():
            words[row + field] = value
        start = (row + self._name) * WORD
        self._buffer[start : start + len(name)] = name
        hashed = crc32(name, salt)
        words[row + R_KEY] = hashed << 32 | len(name)
        words[row + R_GENERATION] = generation
        bucket = self._bucket(hashed, words[state + T_HIGH])
        words[row + R_CHAIN] = words[bucket + R_BUCKET]
        words[bucket + R_BUCKET] = row
        words[state + T_USED] += 1
        return row

    def remove(self, row: int) -> None:
        """Free the row."""
        words, state = self._words, self.state
        bucket = self._bucket(words[row + R_KEY] >> 32, self.high)
        words[row + R_GENERATION] = 0
        here = words[bucket + R_BUCKET]
        if here == row:
            words[bucket + R_BUCKET] = words[row + R_CHAIN]
        else:
            steps = self.high
            while here and words[here + R_CHAIN] != row:
                here = words[self.checked(here) + R_CHAIN]
                steps -= 1
                if steps < 0:
                    raise CorruptStore(f"{self.what}: a hash chain goes round in a circle")
            if here:
                words[here + R_CHAIN] = words[row + R_CHAIN]
        words[row + R_CHAIN] = words[state + T_FREE]
        words[state + T_FREE] = row
        words[state + T_USED] -= 1

    def rebuild(self) -> None:
        """Compute buckets, chains and the free list anew from the generations and keys."""
        words, state, width = self._words, self.state, self.row_words
        high = self.high
        rows = range(self.base, self.base + high * width, width)
        for row in rows:
            words[row + R_BUCKET] = 0
        free = used = 0
        for row in rows:
            if words[row + R_GENERATION]:
                bucket = self._bucket(words[row + R_KEY] >> 32, high)
                words[row + R_CHAIN] = words[bucket + R_BUCKET]
                words[bucket + R_BUCKET] = row
                used += 1
            else:
                words[row + R_CHAIN] = free
                free = row
        words[state + T_FREE] = free
        words[state + T_USED] = used

    def clear(self) -> None:
        """Free every row. May be interrupted and begun again."""
        words, width = self._words, self.row_words
        # Whatever T_HIGH says: this also mends it. Nothing is touched that is not reserved.
        reserved = words[self.state + T_RESERVED] // (width * WORD)
        for row in range(self.base, self.base + min(reserved, self.max_rows) * width, width):
            words[row + R_GENERATION] = 0
        for word in (T_HIGH, T_FREE, T_USED, T_CURSOR, T_RESERVED):
            words[self.state + word] = 0

    def sweep(self, limit: int) -> Iterator[int]:
        """References of the rows in use among the next `limit`, going round with each call."""
        words, state, width = self._words, self.state, self.row_words
        high = self.high
        if not high:
            return
        at = words[state + T_CURSOR] % high
        words[state + T_CURSOR] = (at + min(limit, high)) % high
        for i in range(at, at + min(limit, high)):
            row = self.base + i % high * width
            if words[row + R_GENERATION]:
                yield row

    def _bucket(self, hashed: int, high: int) -> int:
        """Reference of the row that holds the head of the bucket for a hash."""
        low = 1 << (high.bit_length() - 1)  # the largest power of two not over `high`
        index = hashed & (2 * low - 1)
        if index >= high:
            index -= low
        return self.base + index * self.row_words

    def _split(self, new: int) -> None:
        """Bucket `new` has just come to be: move into it what belongs there, from one other."""
        if not new:
            return
        words, high = self._words, new + 1
        low = 1 << (new.bit_length() - 1)
        old = self.base + (new - low) * self.row_words
        mine = self.base + new * self.row_words
        row, keep, move = words[old + R_BUCKET], 0, 0
        steps = 0
        while row:
            following = words[self.checked(row) + R_CHAIN]
            if self._bucket(words[row + R_KEY] >> 32, high) == mine:
                words[row + R_CHAIN] = move
                move = row
            else:
                words[row + R_CHAIN] = keep
                keep = row
            row = following
            steps += 1
            if steps > high:
                raise CorruptStore(f"{self.what}: a hash chain goes round in a circle")
        words[old + R_BUCKET] = keep
        words[mine + R_BUCKET] = move
