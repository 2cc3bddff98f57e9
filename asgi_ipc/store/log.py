"""The log: a ring of message records in order of arrival, and how it makes room.

Allocating moves the head, freeing marks a record dead, and the tail follows over what is dead. A
live record that stands in the tail's way is copied to the head; it keeps its sequence number and
its place in its queue, so nobody sees it move. The body of a message is one piece whatever its
size, and after any history an empty log takes the largest message again.

Three rules keep the work of each call in proportion to the size of its message:

- The ring wraps at the *mark*, the end of what is reserved, and the mark grows only while more
  than half before it is live. One stuck message therefore cannot walk the ring through all memory.
- At the last mark, live records stay under three quarters of the ring.
- What is free at the head (the *gap*) stays twice as large as the biggest record in the log, and at
  an eighth of the ring: it may be in two pieces, at the end and at the start, and one of them then
  takes whatever record stands at the tail. Once the gap is smaller each allocation pays for some of
  the moves to come, and none is given a place behind which that record would fit nowhere.

Nothing here knows queues except by the links that a copy must take along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import CorruptStore
from .layout import (
    DEAD,
    HALF_HEAD,
    HALF_TAIL,
    L_EXPIRES,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SIZE,
    L_STATE,
    LIVE,
    PAGE,
    Q_FIRST,
    Q_LAST,
    RECORD_WORDS,
    S_BIGGEST,
    S_ENDS,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_MOVES,
    WORD,
    Layout,
)

_STEP = 256 * 1024  # bytes by which the mark grows, at the least
_AHEAD = 8  # words of log looked at for each word allocated, once the gap is small


class Log:
    """The ring of `layout` in `words`.

    `expire(at)` is called for records found expired, `check_row` for what should be a queue's row.
    """

    def __init__(
        self,
        buffer: Any,
        words: memoryview[int],
        halves: memoryview[int],
        doubles: memoryview[float],
        layout: Layout,
        reserve: Callable[[int, int], bool],
        expire: Callable[[int], None],
        check_row: Callable[[int], int],
    ) -> None:
        self._buffer = buffer
        self._words = words
        self._halves = halves
        self._doubles = doubles
        self._reserve = reserve
        self._expire = expire
        self._check_row = check_row
        self.start = layout.log
        self.end = layout.log_end
        self.last = layout.log_end - RECORD_WORDS  # where the last record could begin
        self.max_live = layout.max_live
        self.max_record = layout.max_record
        # The value of S_ENDS when nothing is stored: both ends in one store.
        self.empty = layout.log << 32 | layout.log

    def close(self) -> None:
        """Let go of the store, which refers to this log."""
        del self._expire, self._check_row

    def ends(self) -> tuple[int, int, int]:
        """(head, tail, mark), checked."""
        halves = self._halves
        head, tail, mark = halves[HALF_HEAD], halves[HALF_TAIL], self._words[S_MARK]
        if not (self.start <= head <= mark and self.start <= tail <= mark <= self.end):
            raise CorruptStore(f"the log from {tail} to {head}, mark {mark}, is not inside itself")
        return head, tail, mark

    def size(self, at: int) -> int:
        """Words of the record at `at`, checked."""
        size, state = self._halves[2 * at + L_SIZE], self._halves[2 * at + L_STATE]
        if size < 2 or size % 2 or at + size > self.end or state not in (LIVE, DEAD):
            raise CorruptStore(f"no record begins at word {at} of the log")
        return size

    def make_room(self, size: int, now: float) -> int:
        """Return where a record of `size` words can be written, or 0 if there is no room.

        Under the lock, with the dirty word set. Moves the tail, copies records that stand in its
        way, lets expired ones go, wraps, and reserves memory, as needed.
        """
        words, halves = self._words, self._halves
        # Of the ring as it was: what follows may move both ends, also where it ends in vain.
        words[S_LIMIT] = 0
        ahead = _AHEAD * size + 64  # words still to look at although there is room
        lap = self.end - self.start + size  # after one lap there is nothing left to try
        may_grow = True
        while True:
            head, tail, mark = self.ends()
            live = words[S_LIVE]
            if not live:
                words[S_BIGGEST] = 0
                if head != tail:
                    words[S_ENDS] = self.empty
                    continue
            room = mark - self.start
            biggest = max(size, words[S_BIGGEST]) if live else 0
            if may_grow and (live + size) * 2 + biggest > room:
                may_grow = False
                if self._grow(head, tail, mark, size, (live + size + biggest) * 2):
                    continue
            # Where memory is short even a large record must not take it all: it may have to stay.
            keep = 2 * min(biggest, room >> 2)
            enough = live + size + keep <= room
            aside = max(keep, room >> 3)
            if enough and head > mark - aside and head >= tail > self.start + size + aside:
                # Every allocation in the last stretch would come here: begin the next lap instead.
                self._wrap(head, mark)
                head = self.start
            place = self._place(size, head, tail, mark) if enough else 0
            # What is free behind the new record (what fills the end of a lap is not), and the
            # larger of its pieces: as long as the biggest record fits there the tail can move on.
            if tail > place:
                gap = piece = tail - place - size
            else:
                gap = mark - place - size + tail - self.start
                piece = max(mark - place - size, tail - self.start)
            # Dead records are passed ahead of need, which costs little: then the tail catches up
            # with what lives, and from there on each message that is taken moves it.
            dead = head != tail and (tail == mark or halves[2 * tail + L_STATE] == DEAD)
            wide = gap > aside and not dead
            if place and piece > min(biggest, room >> 2) and (wide or ahead <= 0):
                return self._limited(place, size, aside, tail, mark, dead)
            step = self._advance(head, tail, mark, now, enough) if head != tail and lap > 0 else 0
            ahead -= step >> 2 if dead else step
            lap -= step
            if not step:
                return self._limited(place, size, aside, tail, mark, False) if place else 0

    def _limited(
        self, place: int, size: int, aside: int, tail: int, mark: int, behind: bool
    ) -> int:
        """Note how far the head may go from `place` before `make_room` has to think again: while
        the gap is wider than `aside`, and not far while the tail is `behind`. Returns `place`."""
        # Right also for a tail that went back to the start, because nothing was live any more.
        limit = (tail - 2 if tail > place else mark) - aside
        if behind or place == self.start:  # after a wrap the tail may wait at what fills the end
            limit = min(limit, place + _AHEAD * size)
        self._words[S_LIMIT] = max(limit, 0)
        if size > self._words[S_BIGGEST]:
            self._words[S_BIGGEST] = size
        return place

    def _place(self, size: int, head: int, tail: int, mark: int) -> int:
        """Where `size` words fit in one piece; 0 for nowhere. Wraps."""
        if tail > head:
            return head if tail - head > size else 0
        if mark - head >= size:
            return head
        if tail - self.start > size:
            self._wrap(head, mark)
            return self.start
        return 0

    def _wrap(self, head: int, mark: int) -> None:
        """Send the head back to the start, over a dead record that fills the rest."""
        if head < mark:
            self._fill(head, mark - head)
        self._halves[HALF_HEAD] = self.start

    def _fill(self, at: int, size: int) -> None:
        """Write a dead record, for the tail to pass over."""
        self._halves[2 * at + L_SIZE] = size
        self._halves[2 * at + L_STATE] = DEAD

    def _advance(self, head: int, tail: int, mark: int, now: float, move: bool) -> int:
        """Move the tail over one record, which if it lives only `move` allows; return its words,
        or 0 if the tail stays where it is."""
        halves = self._halves
        if tail == mark:
            halves[HALF_TAIL] = self.start
            return 2
        size = self.size(tail)
        if halves[2 * tail + L_STATE] == LIVE:
            if self._doubles[tail + L_EXPIRES] <= now:
                self._expire(tail)
                return 2  # it is dead now, and the next step passes it
            if size > self.max_record:
                raise CorruptStore(f"the record at word {tail} is too large")
            place = self._place(size, head, tail, mark) if move else 0
            if not place:
                return 0
            self._move(tail, place, size)
        if tail + size > mark:
            raise CorruptStore(f"the record at word {tail} reaches over the mark")
        halves[HALF_TAIL] = tail + size
        return size

    def _move(self, old: int, new: int, size: int) -> None:
        """Copy a live record to `new`, publish the copy, and let the original die.

        A death in between leaves two records with one sequence number; recovery keeps one.
        """
        words, halves, buffer = self._words, self._halves, self._buffer
        buffer[new * WORD : (new + size) * WORD] = buffer[old * WORD : (old + size) * WORD]
        halves[HALF_HEAD] = new + size
        halves[2 * old + L_STATE] = DEAD
        row, following, before = halves[2 * new + L_QUEUE], words[new + L_NEXT], words[new + L_PREV]
        self._check_row(row)
        for link in (following, before):
            if link and not self.start <= link <= self.last:
                raise CorruptStore(f"the record at word {old} leads to word {link}, outside it")
        words[following + L_PREV if following else row + Q_LAST] = new
        words[before + L_NEXT if before else row + Q_FIRST] = new
        words[S_MOVES] += 1

    def _grow(self, head: int, tail: int, mark: int, least: int, wanted: int) -> bool:
        """Move the mark so that `wanted` words lie before it; by `least` if need be."""
        step = max(_STEP // WORD, (mark - self.start) // 2)
        step = min(max(step, self.start + wanted - mark), self.end - mark)
        while step > 0:
            upto = min(-(-(mark + step) * WORD // PAGE) * PAGE // WORD, self.end)
            if self._reserve(mark * WORD, (upto - mark) * WORD):
                if tail > head:
                    # Records lie at the old mark: from there to the new one a dead one leads on.
                    self._fill(mark, upto - mark)
                self._words[S_MARK] = upto
                return True
            step = step // 2 if step // 2 >= least else 0
        return False

    def records(self) -> list[int]:
        """Where every live record lies, from the tail to the head."""
        head, tail, mark = self.ends()
        found, steps = [], 0
        while tail != head:
            if tail == mark:
                tail = self.start
                continue
            size = self.size(tail)
            if tail < head < tail + size or tail + size > mark:
                raise CorruptStore(f"the record at word {tail} reaches over the end of the log")
            if self._halves[2 * tail + L_STATE] == LIVE:
                if not RECORD_WORDS <= size <= self.max_record:
                    raise CorruptStore(f"the record at word {tail} is of an impossible size")
                found.append(tail)
            tail += size
            steps += size
            if steps > self.end - self.start:
                raise CorruptStore("the log goes round in a circle")
        return found
