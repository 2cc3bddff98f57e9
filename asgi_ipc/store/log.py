"""The log: a ring of message records in order of arrival, and how it makes room for another.

It must not know queues, except for the links to a record, which must follow when it is moved.

A new record goes to the *head*. A record that is freed is marked dead, and the *tail* moves over
dead records. A live record that blocks the tail is copied to the head; it keeps its sequence number
and its position in its queue, so no reader notices. A record is always in one piece, and an empty
log accepts the largest message, whatever happened before. The ring ends at the *mark*: only the
memory before it is reserved. This is the ring before and after the head has wrapped::

    start            tail             head             mark             end
    |      free      |////////////////|      free      |  not reserved  |
    |<--- piece ---->|    records     |<--- piece ---->|                |

    start            head             tail             mark             end
    |////////////////|      free      |////////////////|  not reserved  |
    |    records     |<--- piece ---->|    records     |                |

The *gap* is what is free: two pieces in the first case, one in the second. Three rules keep the
work of a call in proportion to the size of its message:

- The mark moves up only while more than half of the ring is live. A message that nobody reads
  therefore cannot make the ring creep through all memory.
- When the mark is at the end, live records take up less than three quarters of the ring.
- The gap is kept larger than two of the biggest records and than an eighth of the ring. One of its
  pieces then has room for any record that blocks the tail. When the gap gets smaller, each call
  does some of the moves that will be needed. It never uses up the piece that these moves need.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import CorruptStore
from .layout import (
    COUNT,
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
)
from .memory import Memory, Reserve

_STEP = 256 * 1024  # bytes by which the mark moves up, or more
_AHEAD = 8  # words that the tail moves for each word allocated, once the gap is small


class Log:
    """The ring in `memory`.

    `expire(at)` drops an expired record. `check_row` raises CorruptStore if there is no queue row.
    """

    def __init__(
        self,
        memory: Memory,
        reserve: Reserve,
        expire: Callable[[int], None],
        check_row: Callable[[int], int],
    ) -> None:
        layout = memory.layout
        self._buffer = memory.buffer
        self._words = memory.words
        self._halves = memory.halves
        self._doubles = memory.doubles
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
        """Drop the references to the store, which itself refers to this log."""
        del self._expire, self._check_row

    def ends(self) -> tuple[int, int, int]:
        """Return (head, tail, mark), or raise CorruptStore if they cannot be right."""
        halves = self._halves
        head, tail, mark = halves[HALF_HEAD], halves[HALF_TAIL], self._words[S_MARK]
        if not (self.start <= head <= mark and self.start <= tail <= mark <= self.end):
            raise CorruptStore(
                f"the log has its tail at word {tail}, its head at {head} and its mark at {mark}, "
                f"which are not all between {self.start} and {self.end}"
            )
        return head, tail, mark

    def checked(self, at: int) -> int:
        """Return `at` if a record could begin there, or raise CorruptStore."""
        if not self.start <= at <= self.last:
            raise CorruptStore(f"a list of messages leads to word {at}, which is outside the log")
        return at

    def size(self, at: int) -> int:
        """Return the words of the record at `at`, or raise CorruptStore if there is none."""
        size, state = self._halves[2 * at + L_SIZE], self._halves[2 * at + L_STATE]
        if size < 2 or size % 2 or at + size > self.end or state not in (LIVE, DEAD):
            raise CorruptStore(f"no record begins at word {at} of the log")
        return size

    def make_room(self, size: int, now: float) -> int:
        """Return where a record of `size` words can be written, or 0 if there is no room.

        Under the lock, with the dirty word set. Moves the tail, copies records that block it, drops
        expired ones, wraps, and reserves memory, as needed. The new record leaves this gap::

            start       tail        head = place     + size          mark
            |  piece    |///////////|/// new record //|     piece     |
            gap = (mark - place - size) + (tail - start)

            start = place    + size          tail         head       mark
            |/// new record //|     piece     |////////////|// dead //|
            gap = tail - place - size

            start       head = place     + size           tail       mark
            |///////////|/// new record //|     piece      |//////////|
            gap = tail - place - size

        In the second case the head wraps: a dead record fills the end of the ring. The call ends
        when the gap is wider than `margin`, or when it has moved the tail far enough for its share.
        Up to S_LIMIT, which is `margin` words before the next obstacle, `put` then moves the head
        without this call.
        """
        words, halves = self._words, self._halves
        words[S_LIMIT] = 0  # both ends may move now, even if no room is found
        ahead = _AHEAD * size + 64  # words that the tail is to move although there is room
        lap = self.end - self.start + size  # words after which every place has been tried
        may_grow = True
        while True:
            head, tail, mark = self.ends()
            live = words[S_LIVE] & COUNT
            if not live:
                words[S_BIGGEST] = 0
                if head != tail:
                    words[S_ENDS] = self.empty
                    continue
            ring = mark - self.start
            biggest = max(size, words[S_BIGGEST]) if live else 0
            if may_grow and (live + size) * 2 + biggest > ring:
                may_grow = False
                if self._grow(head, tail, mark, size, (live + size + biggest) * 2):
                    continue
            # Room for two of the largest records stays free. Where memory is short each of them
            # counts as a quarter of the ring: a record then takes half of the ring or less, and
            # the others pass it even if nobody reads it.
            largest = min(biggest, ring >> 2)
            enough = live + size + 2 * largest <= ring
            margin = max(2 * largest, ring >> 3)
            if enough and head > mark - margin and head >= tail > self.start + size + margin:
                # Every call in the last stretch would come here: begin the next lap instead.
                self._wrap(head, mark)
                head = self.start
            place = self._fit(size, head, tail, mark) if enough else 0
            if tail > place:
                gap = piece = tail - place - size
            else:
                gap = mark - place - size + tail - self.start
                piece = max(mark - place - size, tail - self.start)
            # Passing over dead records before it is necessary costs little. The tail then reaches
            # a live record, and from there each message that is taken moves it.
            dead = head != tail and (tail == mark or halves[2 * tail + L_STATE] == DEAD)
            wide = gap > margin and not dead
            if place and piece > largest and (wide or ahead <= 0):
                return self._set_limit(place, size, margin, tail, mark, dead)
            step = self._advance(head, tail, mark, now, enough) if head != tail and lap > 0 else 0
            ahead -= step >> 2 if dead else step
            lap -= step
            if not step:
                return self._set_limit(place, size, margin, tail, mark, False) if place else 0

    def _set_limit(
        self, place: int, size: int, margin: int, tail: int, mark: int, behind: bool
    ) -> int:
        """Set how far the head may move from `place` without `make_room`: as long as the gap is
        wider than `margin`, and less far if the tail is `behind`. Return `place`."""
        # This is also right if the tail has gone back to the start because nothing was live.
        limit = (tail - 2 if tail > place else mark) - margin
        if behind or place == self.start:  # after a wrap the tail may be at the dead record
            limit = min(limit, place + _AHEAD * size)
        self._words[S_LIMIT] = max(limit, 0)
        if size > self._words[S_BIGGEST]:
            self._words[S_BIGGEST] = size
        return place

    def _fit(self, size: int, head: int, tail: int, mark: int) -> int:
        """Return where `size` words fit in one piece, or 0. Wraps if only the start has room."""
        if tail > head:
            return head if tail - head > size else 0
        if mark - head >= size:
            return head
        if tail - self.start > size:
            self._wrap(head, mark)
            return self.start
        return 0

    def _wrap(self, head: int, mark: int) -> None:
        """Move the head back to the start, over a dead record that fills the end of the ring."""
        if head < mark:
            self._fill(head, mark - head)
        self._halves[HALF_HEAD] = self.start

    def _fill(self, at: int, size: int) -> None:
        """Write a dead record, which the tail passes over."""
        self._halves[2 * at + L_SIZE] = size
        self._halves[2 * at + L_STATE] = DEAD

    def _advance(self, head: int, tail: int, mark: int, now: float, move: bool) -> int:
        """Move the tail over one record; if that is live, copy it first, but only with `move`.
        Return the words that were passed, or 0 if the tail stays where it is."""
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
                raise CorruptStore(
                    f"the record at word {tail} of the log has {size} words, and no message takes "
                    f"more than {self.max_record}"
                )
            place = self._fit(size, head, tail, mark) if move else 0
            if not place:
                return 0
            self._move(tail, place, size)
        if tail + size > mark:
            raise self._overlong(tail)
        halves[HALF_TAIL] = tail + size
        return size

    def _move(self, old: int, new: int, size: int) -> None:
        """Copy a live record to `new`, publish the copy, and mark the original dead.

        A death in between leaves two records with the same sequence number; recovery keeps one.
        """
        words, halves, buffer = self._words, self._halves, self._buffer
        buffer[new * WORD : (new + size) * WORD] = buffer[old * WORD : (old + size) * WORD]
        halves[HALF_HEAD] = new + size
        halves[2 * old + L_STATE] = DEAD
        row, following, before = halves[2 * new + L_QUEUE], words[new + L_NEXT], words[new + L_PREV]
        self._check_row(row)
        for link in (following, before):
            if link:
                self.checked(link)
        words[following + L_PREV if following else row + Q_LAST] = new
        words[before + L_NEXT if before else row + Q_FIRST] = new
        words[S_MOVES] += 1

    def _grow(self, head: int, tail: int, mark: int, least: int, wanted: int) -> bool:
        """Move the mark up until `wanted` words lie before it, or only by `least` words if memory
        is short. Return whether it has moved."""
        step = max(_STEP // WORD, (mark - self.start) // 2)
        step = min(max(step, self.start + wanted - mark), self.end - mark)
        while step > 0:
            upto = min(-(-(mark + step) * WORD // PAGE) * PAGE // WORD, self.end)
            if self._reserve(mark * WORD, (upto - mark) * WORD):
                if tail > head:
                    # The ring has wrapped, so records lead up to the old mark: a dead one leads on
                    # from there to the new mark.
                    self._fill(mark, upto - mark)
                self._words[S_MARK] = upto
                return True
            step = step // 2 if step // 2 >= least else 0
        return False

    def live_records(self) -> list[int]:
        """Return where every live record is, from the tail to the head."""
        head, tail, mark = self.ends()
        found, steps = [], 0
        while tail != head:
            if tail == mark:
                tail = self.start
                continue
            size = self.size(tail)
            if tail < head < tail + size or tail + size > mark:
                raise self._overlong(tail)
            if self._halves[2 * tail + L_STATE] == LIVE:
                if not RECORD_WORDS <= size <= self.max_record:
                    raise CorruptStore(
                        f"the record at word {tail} of the log has {size} words, which no message "
                        "takes"
                    )
                found.append(tail)
            tail += size
            steps += size
            if steps > self.end - self.start:
                raise CorruptStore("the records of the log form a loop")
        return found

    def _overlong(self, at: int) -> CorruptStore:
        return CorruptStore(f"the record at word {at} extends past the end of the log")
