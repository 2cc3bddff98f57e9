"""Queues and their messages: the path of every send and receive, and so short. Part of the store.

Calls that end with a message in a queue return the waiter to ring: the bit was taken out of the
queue's waiter set under the lock, the byte is written after it is released (`doorbell`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import adler32

from ..errors import CorruptStore, LimitReached
from .front import Front, read_front
from .layout import (
    CLEAN,
    DEAD,
    DIRTY,
    EXPIRED,
    HALF_HEAD,
    HALF_TAIL,
    L_EXPIRES,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SIZE,
    L_STATE,
    LIVE,
    MAX_PROCESSES,
    P_DEAD_SINCE,
    PROCESS_WORDS,
    Q_CAPACITY,
    Q_CREATED,
    Q_DROPS,
    Q_FIRST,
    Q_LAST,
    Q_MEMBERS,
    Q_NAME,
    Q_OWNER,
    Q_PENDING,
    Q_REFUSED,
    Q_SEEN,
    Q_SEEN_AT,
    Q_SENT,
    Q_WAITING,
    QUEUE_WORDS,
    R_GENERATION,
    RECORD,
    RECORD_WORDS,
    S_BIGGEST,
    S_DIRTY,
    S_DROPS,
    S_ENDS,
    S_LIMIT,
    S_LIVE,
    S_REFUSED,
    S_SEQ,
    TAKEN,
    WORD,
    Layout,
    record_words,
)
from .log import Log
from .table import Table
from .waiters import Waiters

LONG_DEAD = -1e18  # a time of death so long ago that every expiry is over

FULL, NO_MEMORY, GONE = -1, -2, -3  # what `put` answers instead of a waiter

NO_ROW = (
    "no room for another channel ({} in use). Raise message_memory or group_memory for all "
    "processes of this prefix"
)

# What a target that was not looked up yet takes for its row: one that is not in use, and empty.
_NO_WORDS: memoryview[int] = memoryview(bytes(QUEUE_WORDS * WORD)).cast("Q")

_CHECKED = 64 * 1024  # bytes of a body that its checksum covers: of a larger one, both ends
EXPIRED_AT_ONCE = 128  # expired messages let go in one call
IDLE = 60.0  # seconds without a message after which an empty queue's row is reclaimed


# Bound once: to find a method of a Struct in each call takes a good part of what it does.
_pack_record = RECORD.pack_into
_unpack_taken = TAKEN.unpack_from


class Taken(NamedTuple):
    """A message taken out of a queue, not decoded."""

    seq: int
    expires: float
    local_parts: bytes  # joined by LOCAL_SEPARATOR; b"" where the channel has no local part
    body: bytes


class Target:
    """A queue as a process knows it: its name, and where its row was when last looked up: `words`
    are those of the row, so that no index need be computed for each.

    `local_parts`, `capacity` and `expiry` belong to what is sent there: the local part of one
    channel, or those of all members of a broadcast (`fixed`: if the queue is gone it is not made
    again).
    """

    __slots__ = (
        "capacity",
        "expiry",
        "fixed",
        "generation",
        "local_length",
        "local_parts",
        "queue",
        "row",
        "seed",
        "words",
    )

    def __init__(
        self,
        queue: bytes,
        local_parts: bytes = b"",
        capacity: int = 0,
        expiry: float = float("inf"),
    ) -> None:
        """`capacity` in messages, `expiry` in seconds."""
        self.queue = queue
        self.local_parts = local_parts
        self.local_length = len(local_parts)
        self.seed = adler32(local_parts) if local_parts else 0  # of checksums, see `checksum`
        self.capacity = capacity
        self.expiry = expiry
        self.row = 0
        self.words = _NO_WORDS
        self.generation = -1  # that of no row: look it up
        self.fixed = False

    def moved(self, row: int, words: memoryview[int]) -> None:
        """Note where the row is. The generation last: interrupted before it the target fits no row,
        and is looked up again."""
        self.words = words[row : row + QUEUE_WORDS]
        self.row = row
        self.generation = self.words[R_GENERATION]


class Queues(Waiters):
    """Channels by name, and the messages in them.

    `reserve(offset, length)` makes bytes safe to touch and says whether it could.
    """

    def __init__(
        self,
        buffer: Any,
        layout: Layout,
        reserve: Callable[[int, int], bool] = lambda offset, length: True,
    ) -> None:
        super().__init__(buffer, layout)
        self.dropped: dict[int, str] = {}  # channels to tell the log of, by reason (`drops`)
        self.queues = Table("queues", buffer, self.words, layout.queues, Q_NAME, reserve)
        self.log = Log(
            buffer,
            self.words,
            self.halves,
            self.doubles,
            layout,
            reserve,
            self._expire,
            self.queues.checked,
        )

    def close(self) -> None:
        self.log.close()
        super().close()

    # -- messages ---------------------------------------------------------------------------------

    def put(self, target: Target, body: bytes, now: float) -> int:
        """Append `body` to the queue of `target`, until `target.expiry` seconds after `now`.

        Returns the waiter to ring, 0 if nobody waits, or FULL, NO_MEMORY or GONE when nothing was
        done: the capacity is reached, no room is left in memory (or for another queue), or a fixed
        target is no longer there.
        """
        words, queue = self.words, target.words
        if queue[R_GENERATION] != target.generation:
            if not self.bind(target, now):
                return GONE if target.fixed else NO_MEMORY
            queue = target.words
        row = target.row
        count = queue[Q_PENDING]
        if count >= target.capacity:
            count = self.let_go(row, now)
            if count >= target.capacity:
                queue[Q_REFUSED] += 1
                words[S_REFUSED] += 1
                return FULL
        length, local_length = len(body), target.local_length
        size = RECORD_WORDS + ((length + local_length + 15) >> 4 << 1)
        halves, log = self.halves, self.log
        at = halves[HALF_HEAD]
        end = at + size
        live = words[S_LIVE] + size
        if end > words[S_LIMIT] or size > words[S_BIGGEST] or live > log.max_live or at < log.start:
            at = self._room(size, now)
            if not at:
                words[S_DIRTY] = CLEAN
                return NO_MEMORY
            end = at + size
            live = words[S_LIVE] + size
            count = queue[Q_PENDING]
        words[S_DIRTY] = DIRTY
        seq = words[S_SEQ] + 1
        last = queue[Q_LAST]
        if last and not log.start <= last <= log.last:
            raise CorruptStore(f"a queue leads to word {last}, outside the log")
        start, buffer = at * WORD, self.buffer
        _pack_record(
            buffer,
            start,
            size,
            LIVE,
            seq,
            0,
            last,
            row,
            length,
            now + target.expiry,
            now,
            local_length,
            adler32(body, seq ^ target.seed)
            if length <= _CHECKED
            else checksum(seq, target.local_parts, body),
        )
        start += RECORD_WORDS * WORD
        if local_length:
            buffer[start : start + local_length] = target.local_parts
            start += local_length
        buffer[start : start + length] = body
        words[S_SEQ] = seq
        halves[HALF_HEAD] = end  # published: from here on the message exists
        if last:
            words[last + L_NEXT] = at
        else:
            queue[Q_FIRST] = at
        queue[Q_LAST] = at
        queue[Q_PENDING] = count + 1
        queue[Q_SENT] += 1
        words[S_LIVE] = live
        words[S_DIRTY] = CLEAN
        return self.pick(row) if queue[Q_WAITING] else 0

    def take(self, target: Target, now: float, waiter: int = 0) -> bytes | None:
        """Take the oldest message out of the queue of `target`; None when it is empty.

        `waiter`, if it is given, is parked at the empty queue, in this very call.
        """
        words, queue = self.words, target.words
        if queue[R_GENERATION] != target.generation:
            if not (self.bind(target, now) if waiter else self.find(target)):
                if waiter:
                    raise LimitReached(NO_ROW.format(self.queues.used))
                return None
            queue = target.words
        while True:
            at = queue[Q_FIRST]
            if not at:
                if waiter:
                    self.park(target.row, waiter)
                return None
            # As `_read` and `_free`, in one: this is half of what every message costs.
            log, buffer = self.log, self.buffer
            if not log.start <= at <= log.last:
                raise CorruptStore(f"a queue leads to word {at}, outside the log")
            start = at * WORD
            size, state, seq, following, owner, length, expires, check = _unpack_taken(
                buffer, start
            )
            start += RECORD_WORDS * WORD
            body: bytes = buffer[start : start + length]
            summed = adler32(body, seq) if length <= _CHECKED else checksum(seq, b"", body)
            if owner != target.row or state != LIVE or check != summed:
                raise CorruptStore(f"a queue leads to word {at} of the log, which is none of its")
            if following and not log.start <= following <= log.last:
                raise CorruptStore(f"a queue leads to word {following}, outside the log")
            words[S_DIRTY] = DIRTY
            halves = self.halves
            halves[2 * at + L_STATE] = DEAD
            queue[Q_FIRST] = following
            if following:
                words[following + L_PREV] = 0
            else:
                queue[Q_LAST] = 0
            queue[Q_PENDING] -= 1
            live = words[S_LIVE] - size
            words[S_LIVE] = live
            if not live:
                words[S_ENDS] = log.empty  # reuse the same pages, over and over
            elif halves[HALF_HEAD] == at + size:
                halves[HALF_HEAD] = at  # the newest: give its place back
            elif halves[HALF_TAIL] == at:
                halves[HALF_TAIL] = at + size
            if expires > now:
                words[S_DIRTY] = CLEAN
                return body
            self.count_drop(target.row, EXPIRED)
            words[S_DIRTY] = CLEAN

    def peek(self, row: int) -> Taken | None:
        """Read the oldest message of the queue at `row` and leave it there."""
        at = self.words[row + Q_FIRST]
        return self._read(row, self._inside(at)) if at else None

    def front(self, row: int, now: float) -> Front:
        """Look at what waits in the queue at `row`. Needs no lock."""
        words = self.words[row : row + QUEUE_WORDS]
        return read_front(
            self.layout, lambda at, size: self.buffer[at : at + size], row, words, now
        )

    def pop(self, row: int) -> None:
        """Consume the message that `peek` gave."""
        words = self.words
        words[S_DIRTY] = DIRTY
        self._free(row, words[row + Q_FIRST])
        words[S_DIRTY] = CLEAN

    def _read(self, row: int, at: int) -> Taken:
        """The record at `at`, every field checked before it is used."""
        buffer = self.buffer
        size, state, seq, _, _, owner, length, expires, _, locals_length, check = (
            RECORD.unpack_from(buffer, at * WORD)
        )
        if owner != row or state != LIVE or size != record_words(length, locals_length):
            raise CorruptStore(f"a queue leads to word {at} of the log, which is none of its")
        start = (at + RECORD_WORDS) * WORD
        local_parts = bytes(buffer[start : start + locals_length]) if locals_length else b""
        start += locals_length
        body: bytes = buffer[start : start + length]
        if check != checksum(seq, local_parts, body):
            raise CorruptStore(f"the message at word {at} of the log has been altered")
        return Taken(seq, expires, local_parts, body)

    def _free(self, row: int, at: int) -> None:
        """Take the record at `at` out of the log and out of its queue at `row`."""
        words, halves = self.words, self.halves
        size = halves[2 * at + L_SIZE]
        halves[2 * at + L_STATE] = DEAD
        following, before = words[at + L_NEXT], words[at + L_PREV]
        if following:
            words[self._inside(following) + L_PREV] = before
        else:
            words[row + Q_LAST] = before
        if before:
            words[self._inside(before) + L_NEXT] = following
        else:
            words[row + Q_FIRST] = following
        words[row + Q_PENDING] -= 1
        live = words[S_LIVE] - size
        words[S_LIVE] = live
        if not live:
            words[S_ENDS] = self.log.empty
        elif halves[HALF_TAIL] == at:
            halves[HALF_TAIL] = at + size

    def _room(self, size: int, now: float) -> int:
        """Where a record of `size` words can be written, or 0. Leaves the dirty word set."""
        words, log = self.words, self.log
        if words[S_LIVE] + size > log.max_live:
            self.sweep_log(EXPIRED_AT_ONCE, now)
            if words[S_LIVE] + size > log.max_live:
                return 0
        words[S_DIRTY] = DIRTY
        return log.make_room(size, now)

    def let_go(self, row: int, now: float) -> int:
        """Drop expired messages at the front of a queue; return how many messages are left."""
        words, doubles = self.words, self.doubles
        for _ in range(EXPIRED_AT_ONCE):
            at = words[row + Q_FIRST]
            if not at or doubles[self._inside(at) + L_EXPIRES] > now:
                break
            words[S_DIRTY] = DIRTY
            self._expire(at)
            words[S_DIRTY] = CLEAN
        return words[row + Q_PENDING]

    def _expire(self, at: int) -> None:
        """Drop a live record whose time is over. With the dirty word set."""
        row = self.queues.checked(self.halves[2 * at + L_QUEUE])
        self._free(row, at)
        self.count_drop(row, EXPIRED)
        owner = self.words[row + Q_OWNER]
        if owner and self.doubles[self.process(owner) + P_DEAD_SINCE]:
            # Unread, and nobody left to read: the memberships need not wait for `expiry`.
            self.doubles[owner + P_DEAD_SINCE] = LONG_DEAD

    def count_drop(self, row: int, reason: int, count: int = 1, local: str = "") -> None:
        """Count messages of the queue at `row` that nobody will receive. `local` says which of
        its channels they were for, where that is known."""
        self.words[row + Q_DROPS + reason] += count
        self.words[S_DROPS + reason] += count
        if reason not in self.dropped:
            self.dropped[reason] = self.queues.name(row).decode("ascii", "replace") + local

    def count_taken(self, target: Target, reason: int, count: int = 1, local: str = "") -> int:
        """The same for messages that were taken out of their queue before they were dropped.
        Returns its row, 0 if it is gone."""
        row = self.find(target)
        if row:
            self.count_drop(row, reason, count, local)
        else:
            self.words[S_DROPS + reason] += count
        return row

    def process(self, reference: int) -> int:
        """Return `reference` if it is one of a process row, else raise CorruptStore."""
        place = reference - self.layout.processes
        if place % PROCESS_WORDS or not 0 <= place < MAX_PROCESSES * PROCESS_WORDS:
            raise CorruptStore(f"{reference} is not the reference of a process")
        return reference

    def _inside(self, at: int) -> int:
        if not self.log.start <= at <= self.log.last:
            raise CorruptStore(f"a queue leads to word {at}, outside the log")
        return at

    # -- queues -----------------------------------------------------------------------------------

    def find(self, target: Target) -> int:
        """The row of `target`'s queue, remembered in the target; 0 if there is none."""
        words = self.words
        row = target.row
        if words[row + R_GENERATION] != target.generation:
            row = self.queues.find(target.queue)
            if row:
                target.moved(row, words)
                if target.capacity:
                    words[row + Q_CAPACITY] = target.capacity  # for `inspection` to read
        return row

    def fix(self, target: Target, row: int, generation: int) -> Target:
        """Bind `target` to the queue at `row`; if that is gone it is not made again."""
        target.moved(row, self.words)
        target.generation, target.fixed = generation, True
        return target

    def bind(self, target: Target, now: float) -> int:
        """The row of `target`'s queue, made if there is none; 0 if that cannot be done."""
        if target.fixed:
            return 0
        row = self.find(target)
        if row:
            return row
        if not self.queues.has_room():
            self.reclaim(now, 0.0, EXPIRED_AT_ONCE * 2)
        if self.queues.has_room():
            words = self.words
            words[S_DIRTY] = DIRTY
            generation = self.advance_counter()
            row = self.queues.insert(target.queue, generation, {Q_CAPACITY: target.capacity})
            self.doubles[row + Q_CREATED] = self.doubles[row + Q_SEEN_AT] = now
            words[S_DIRTY] = CLEAN
            target.moved(row, words)
        return row

    def pick_if_waiting(self, row: int) -> int:
        """Take a waiter out of the set of the queue at `row` if there is something for it."""
        words = self.words
        try:
            self.queues.checked(row)
        except CorruptStore:
            return 0  # rings are from outside, and may be older than a flush
        return self.pick(row) if words[row + R_GENERATION] and words[row + Q_PENDING] else 0

    def find_unexpired(self, target: Target, now: float) -> int:
        """The row of a queue, after its expired messages were let go; 0 if there is none."""
        row = self.find(target)
        if row:
            self.let_go(row, now)
        return row

    def reclaim(self, now: float, idle: float, limit: int) -> None:
        """Free rows of queues that nobody uses and that saw no message for `idle` seconds."""
        words, doubles = self.words, self.doubles
        budget = EXPIRED_AT_ONCE
        for row in self.queues.sweep(limit):
            if words[row + Q_SENT] != words[row + Q_SEEN]:
                words[row + Q_SEEN] = words[row + Q_SENT]
                doubles[row + Q_SEEN_AT] = now
                if idle:
                    continue
            if words[row + Q_FIRST]:
                if idle and doubles[self._inside(words[row + Q_FIRST]) + L_EXPIRES] <= now:
                    before = words[row + Q_PENDING]
                    budget -= before - self.let_go(row, now)
                    if budget <= 0:
                        return  # the others come with the next rounds
                continue
            if (
                words[row + Q_MEMBERS]
                or words[row + Q_OWNER]
                or now - doubles[row + Q_SEEN_AT] < idle
            ):
                continue
            if words[row + Q_WAITING]:
                self.prune(row)
                if words[row + Q_WAITING]:
                    continue
            words[S_DIRTY] = DIRTY
            self.queues.remove(row)
            words[S_DIRTY] = CLEAN

    def sweep_log(self, limit: int, now: float) -> bool:
        """Let go of what is dead or expired at the tail of the log, `limit` records at the most.

        True if that was not enough to come to a record that lives.
        """
        words, doubles, log = self.words, self.doubles, self.log
        for _ in range(limit):
            head, tail, mark = log.ends()
            if head == tail:
                return False
            if tail == mark:
                self.halves[HALF_TAIL] = log.start
                continue
            size = log.size(tail)
            if self.halves[2 * tail + L_STATE] == LIVE:
                if doubles[tail + L_EXPIRES] > now:
                    return False
                words[S_DIRTY] = DIRTY
                self._expire(tail)
                words[S_DIRTY] = CLEAN
            else:
                self.halves[HALF_TAIL] = tail + size
        return True


def checksum(seq: int, local_parts: bytes, body: bytes) -> int:
    """32 bits over a message as it lies in the log; of a large one, over both its ends.

    Adler-32, because it is the fastest that the standard library has for short strings.
    """
    if len(body) > _CHECKED:
        body = body[: _CHECKED // 2] + body[-_CHECKED // 2 :]
    return adler32(body, seq ^ adler32(local_parts) if local_parts else seq)
