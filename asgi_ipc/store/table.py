"""Rows of one size, found by name: the hash table behind queues, groups and memberships.

It must not know what the rows are for. It hashes linearly: there are as many buckets as rows ever
used, and the head of bucket i is a word of row i. A table therefore grows by one row and one
bucket at a time, in a bounded step, and a single high-water mark says how far its memory is
reserved. Chains and the free list are derived. A row exists when its generation, which is stored
last, is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from .memory import Buffer, Reserve

_STEP = 64 * 1024  # bytes reserved at a time


class Table:
    """The rows of `table` in `words`; `buffer` is the same memory as bytes."""

    def __init__(
        self,
        what: str,
        buffer: Buffer,
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
        self._zeros = memoryview(bytes((table.words - R_KEY - 1) * WORD)).cast("Q")

    # -- reading ----------------------------------------------------------------------------------

    @property
    def high(self) -> int:
        """The number of rows ever used since the last flush."""
        high = self._words[self.state + T_HIGH]
        if high > self.max_rows:
            raise CorruptStore(
                f"{self.what}: the header says that {high} rows are in use, and the table has "
                f"{self.max_rows}"
            )
        return high

    @property
    def used(self) -> int:
        """The number of rows in use."""
        return self._words[self.state + T_USED]

    def checked(self, row: int) -> int:
        """Return `row` if a row begins there that has been used, or raise CorruptStore."""
        place = row - self.base
        if place < 0 or place % self.row_words or place // self.row_words >= self.high:
            raise CorruptStore(f"{self.what}: no row begins at word {row}")
        return row

    def name(self, row: int) -> bytes:
        """Return the name of the row at `row`."""
        length = self._words[row + R_KEY] & 0xFFFFFFFF
        start = (row + self._name) * WORD
        return bytes(self._buffer[start : start + min(length, 104)])

    def rows(self) -> Iterator[int]:
        """Yield the references of all rows in use."""
        words, width = self._words, self.row_words
        for row in range(self.base, self.base + self.high * width, width):
            if words[row + R_GENERATION]:
                yield row

    def find(self, name: bytes, salt: int = 0) -> int:
        """Return the reference of the row of `name` (and `salt`, if the table has salts), or 0."""
        high = self.high
        if not high:
            return 0
        words = self._words
        hashed = crc32(name, salt & 0xFFFFFFFF)
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
                raise self._loop()
        return 0

    def _loop(self) -> CorruptStore:
        return CorruptStore(f"{self.what}: a hash chain forms a loop")

    # -- changing: under the lock, with the dirty word set ----------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether every row that the table can have is in use."""
        return not self._words[self.state + T_FREE] and self.high >= self.max_rows

    def ensure_room(self) -> bool:
        """Reserve memory for another row if needed; return whether `insert` will find one."""
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
        """Make the row of `name`; words not in `fields` are 0. Call `ensure_room` first."""
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
        words[row + R_KEY + 1 : row + width] = self._zeros
        for field, value in fields.items():
            words[row + field] = value
        start = (row + self._name) * WORD
        self._buffer[start : start + len(name)] = name
        hashed = crc32(name, salt & 0xFFFFFFFF)
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
                    raise self._loop()
            if here:
                words[here + R_CHAIN] = words[row + R_CHAIN]
        words[row + R_CHAIN] = words[state + T_FREE]
        words[state + T_FREE] = row
        words[state + T_USED] -= 1

    def rebuild(self) -> None:
        """Compute buckets, chains and the free list from the generations and keys."""
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
        """Free every row. May be interrupted and started again."""
        words, width = self._words, self.row_words
        # T_HIGH may be damaged, and is not used: this repairs it. No memory that is not reserved
        # is touched.
        reserved = words[self.state + T_RESERVED] // (width * WORD)
        for row in range(self.base, self.base + min(reserved, self.max_rows) * width, width):
            words[row + R_GENERATION] = 0
        for word in (T_HIGH, T_FREE, T_USED, T_CURSOR, T_RESERVED):
            words[self.state + word] = 0

    def sweep(self, limit: int) -> Iterator[int]:
        """Yield the references of the rows in use among the next `limit`. Each call continues
        where the last one ended, and starts over at the end of the table."""
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
        """Return the reference of the row that holds the head of the bucket for a hash."""
        low = 1 << (high.bit_length() - 1)  # the largest power of two up to `high`
        index = hashed & (2 * low - 1)
        if index >= high:
            index -= low
        return self.base + index * self.row_words

    def _split(self, new: int) -> None:
        """Move the rows that belong in bucket `new`, which was just added, out of the one bucket
        that they can be in."""
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
                raise self._loop()
        words[old + R_BUCKET] = keep
        words[mine + R_BUCKET] = move
