"""Queues and their messages: the path of every send and receive. Part of the store.

`put` and `take` must stay short: they run under the one lock of the segment, so all its processes
wait for each of their steps. A call that puts a message into a queue returns the id of the waiter
to ring. It has taken the id out of the queue's waiter set, under the lock; the caller writes to the
doorbell (`segment.doorbell`) after it has released the lock.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import adler32

from ..errors import CorruptStore, LimitReached
from . import native
from .front import Front, read_front
from .layout import (
    CLEAN,
    COUNT,
    CROWDED,
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
    Q_OWED,
    Q_OWNER,
    Q_PENDING,
    Q_REFUSED,
    Q_SEEN,
    Q_SEEN_AT,
    Q_SENDING,
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
    S_ENOUGH,
    S_LIMIT,
    S_LIVE,
    S_REFUSED,
    S_SENDING,
    S_SEQ,
    TAKEN,
    WORD,
    Layout,
    record_words,
)
from .log import Log
from .memory import Buffer, Reserve, Shortage
from .room import AT_ONCE, NEW, PARKED, RUNG
from .table import Table
from .wakes import LEAVING, WOKEN, Wakes

LONG_DEAD = -1e18  # a time of death so long ago that every expiry is over

FULL, GONE, OWN = -1, -2, -3  # what `put` returns instead of a waiter id
OWN_LIMIT = -1  # `limit` of a target in the sender's own process: `put` leaves it to `aio.sending`
# Or which limit was met when there was no memory: message_memory, the rows of the segment, the
# memory of the machine (`shortage` says more about it), or what was promised to waiting senders.
MESSAGES, CHANNELS, MACHINE, PROMISED = -4, -5, -6, -7

# The row of a target that was not looked up yet: it is not in use, and nothing is pending in it.
_NO_WORDS: memoryview[int] = memoryview(bytes(QUEUE_WORDS * WORD)).cast("Q")

_CHECKED = 64 * 1024  # bytes of a body that its checksum covers: of a larger one, both ends
EXPIRED_AT_ONCE = 128  # expired messages dropped in one call
IDLE = 60.0  # seconds without a message after which the row of an empty queue is reclaimed


# Bound once: looking up a method of a Struct takes a good part of the time of a call.
_pack_record = RECORD.pack_into
_unpack_taken = TAKEN.unpack_from


class Taken(NamedTuple):
    """A message taken out of a queue, not decoded."""

    seq: int
    expires: float
    local_parts: bytes  # joined by LOCAL_SEPARATOR; b"" if the channel has no local part
    body: bytes


class Tried(NamedTuple):
    """The result of a send that may wait."""

    waiter_id: int  # what `put` returns
    place: int = 0  # the set of senders that it is parked in; 0 if it has sent
    until: float = float("inf")  # time when a message expires, which makes room


class Target(native.Target):
    """A queue as a process knows it: its name, and where its row was at the last look-up. `words`
    are the words of the row, so that no index has to be computed for each of them.

    `local_parts`, `capacity` and `expiry` are those of the messages that are sent there: the local
    part of one channel, or those of all members of a broadcast. `limit` is the capacity, or
    OWN_LIMIT; the compiled path reads it. If the queue of a `fixed` target is gone, it is not made
    again.
    """

    __slots__ = ("capacity", "fixed", "local_length", "queue", "words")

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
        self.capacity = self.limit = capacity
        self.expiry = expiry
        self.row = 0
        self.words = _NO_WORDS
        self.generation = -1  # no row has it: look it up
        self.fixed = False
        self.taken = 0.0  # time of the last take here, until the queue is found empty

    def point_to(self, row: int, words: memoryview[int]) -> None:
        """Note where the row is. The generation comes last: if a signal interrupts this before, the
        target matches no row and is looked up again."""
        self.words = words[row : row + QUEUE_WORDS]
        self.row = row
        self.generation = self.words[R_GENERATION]


class Queues(Wakes):
    """Queues by name, and the messages in them."""

    lack = MESSAGES  # inside a section: which limit `bind` or `_make_room` met

    def __init__(
        self, buffer: Buffer, layout: Layout, reserve: Reserve, shortage: Shortage
    ) -> None:
        super().__init__(buffer, layout)
        self.shortage = shortage
        # By reason, a channel that lost messages, until `attachment.drops` has logged it.
        self.dropped: dict[int, str] = {}
        self.queues = Table("queues", buffer, self.words, layout.queues, Q_NAME, reserve)
        self.log = Log(self, reserve, self._expire, self.queues.checked)

    def close(self) -> None:
        self.log.close()
        super().close()

    # -- messages ---------------------------------------------------------------------------------

    def put(self, target: Target, body: bytes, now: float, sender: int = AT_ONCE) -> int:
        """Append `body` to the queue of `target`; it expires `target.expiry` seconds after `now`.

        Returns the id of the waiter to ring, or 0 if nobody waits. If nothing was sent, returns
        FULL (the capacity is reached), GONE (a fixed target is no longer there), OWN (see
        OWN_LIMIT), or what there was no memory for (see MESSAGES).

        `sender`: see `room`. While others wait for room, room that becomes free belongs to them.
        """
        words, queue = self.words, target.words
        if queue[R_GENERATION] != target.generation:
            if not self.bind(target, now):
                if target.fixed:
                    return GONE
                words[S_REFUSED] += not sender
                return self.lack
            queue = target.words
        row = target.row
        pending = queue[Q_PENDING]
        if pending >= target.limit:  # or it is crowded
            if target.limit < 0 and sender == AT_ONCE:
                return OWN
            if self.drop_expired(row, now) >= target.capacity or (
                queue[Q_PENDING] >= CROWDED
                and not self.is_enough(row + Q_SENDING, target.capacity)
                and self.is_promised(row + Q_SENDING, now, sender)
            ):
                queue[Q_REFUSED] += not sender
                words[S_REFUSED] += not sender
                return FULL
            pending = queue[Q_PENDING]
        length, local_length = len(body), target.local_length
        size = RECORD_WORDS + ((length + local_length + 15) >> 4 << 1)
        halves, log = self.halves, self.log
        at = halves[HALF_HEAD]
        end = at + size
        live = words[S_LIVE] + size
        if end > words[S_LIMIT] or size > words[S_BIGGEST] or live > log.max_live or at < log.start:
            at = self._make_room(size, now, sender)
            if not at:
                words[S_REFUSED] += not sender
                words[S_DIRTY] = CLEAN
                return self.lack
            end = at + size
            live = words[S_LIVE] + size
            pending = queue[Q_PENDING]
        words[S_DIRTY] = DIRTY
        seq = words[S_SEQ] + 1
        last = queue[Q_LAST]
        if last and not log.start <= last <= log.last:
            log.checked(last)  # raises CorruptStore
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
            if length <= _CHECKED and seq <= 0xFFFFFFFF
            else checksum(seq, target.local_parts, body),
        )
        start += RECORD_WORDS * WORD
        if local_length:
            buffer[start : start + local_length] = target.local_parts
            start += local_length
        buffer[start : start + length] = body
        words[S_SEQ] = seq
        halves[HALF_HEAD] = end  # published: from now on the message exists
        if last:
            words[last + L_NEXT] = at
        else:
            queue[Q_FIRST] = at
        queue[Q_LAST] = at
        queue[Q_PENDING] = pending + 1
        queue[Q_SENT] += 1
        words[S_LIVE] = live
        words[S_DIRTY] = CLEAN
        return self.ring_one(row, now) if queue[Q_WAITING] else 0

    def put_or_park(
        self,
        target: Target,
        body: bytes,
        now: float,
        waiter_id: int,
        place: int = 0,
        stays: bool = False,
    ) -> Tried:
        """`put` for a sender that may wait: park it, if there is no room, in this same call.

        `place`: where the last try parked it. `stays`: other senders with its waiter id are parked
        there. A `waiter_id` of 0 is not parked. It counts no refusal.
        """
        sender = NEW
        if place and waiter_id:
            sender = PARKED if self.is_parked(place, waiter_id) else RUNG
        result = self.put(target, body, now, sender)
        if result >= 0 or result == GONE:
            self.leave_room(target, waiter_id, place, stays)
            return Tried(result)
        at = target.row + Q_SENDING if result == FULL else S_SENDING
        if place and place != at:
            self.leave_room(target, waiter_id, place, stays)
        if at == S_SENDING:
            until = self._note_need(record_words(len(body), target.local_length), result)
        else:
            first = self.words[target.row + Q_FIRST]
            until = self.doubles[self.log.checked(first) + L_EXPIRES] if first else float("inf")
        if waiter_id:
            if sender == RUNG and place == at:
                self.take_back(at)
            self.park_sender(at, waiter_id)
        return Tried(result, at, until)

    def leave_room(self, target: Target, waiter_id: int, place: int, stays: bool = False) -> None:
        """A sender no longer waits at `place`. A ring that it got, and the room that it leaves, are
        for the next one."""
        if not place or (place != S_SENDING and place != target.row + Q_SENDING):
            return  # the queue is another since a flush
        was_rung = waiter_id != 0 and not self.is_parked(place, waiter_id)
        if not stays:
            self.unpark(place, waiter_id, 0)
        self.answer(place, self.has_room(place, target.capacity), was_rung)

    def _note_need(self, size: int, lack: int) -> float:
        """Note when senders that wait for memory should try again. `lack`: what `put` returned.
        Return when the oldest message expires, if that can make room."""
        words, until = self.words, float("inf")
        if lack in (MESSAGES, PROMISED):
            enough = self.log.max_live - size
            head, tail, mark = self.log.ends()
            if tail == mark:
                tail = self.log.start
            if tail != head and self.halves[2 * tail + L_STATE] == LIVE:
                until = self.doubles[tail + L_EXPIRES]
        else:
            enough = (words[S_LIVE] & COUNT) - size
        words[S_ENOUGH] = max(enough, words[S_ENOUGH] if words[S_SENDING] else 0, 0)
        return until

    def has_room(self, place: int, capacity: int = 0) -> bool:
        """Return whether there is room at a set of senders. `capacity`: that of a queue, if it is
        known."""
        if place == S_SENDING:
            return self.has_memory()
        row = place - Q_SENDING
        return self.words[row + Q_PENDING] & COUNT < (capacity or self.words[row + Q_CAPACITY])

    def take(self, target: Target, now: float, waiter_id: int = 0) -> bytes | None:
        """Take the oldest message out of the queue of `target`; None if the queue is empty.

        A `waiter_id` is parked at the empty queue, in this same call. WOKEN is added to it if it
        was parked there, and LEAVING to that if it must not be parked there any more.
        """
        words, queue = self.words, target.words
        if queue[R_GENERATION] != target.generation:
            if not (self.require(target, now) if waiter_id else self.find(target)):
                return None
            queue = target.words
        while True:
            at = queue[Q_FIRST]
            if not at:
                if waiter_id:
                    self.park_receiver(target, now, waiter_id)
                return None
            # `_read` and `_free`, inlined: this is half of the cost of every message.
            log, buffer = self.log, self.buffer
            if not log.start <= at <= log.last:
                log.checked(at)  # raises CorruptStore
            start = at * WORD
            size, state, seq, following, owner, length, expires, check = _unpack_taken(
                buffer, start
            )
            start += RECORD_WORDS * WORD
            body = buffer[start : start + length]
            summed = (
                adler32(body, seq)
                if length <= _CHECKED and seq <= 0xFFFFFFFF
                else checksum(seq, b"", body)
            )
            if owner != target.row or state != LIVE or check != summed:
                raise _not_a_message(at)
            if following and not log.start <= following <= log.last:
                log.checked(following)  # raises CorruptStore
            words[S_DIRTY] = DIRTY
            halves = self.halves
            halves[2 * at + L_STATE] = DEAD
            queue[Q_FIRST] = following
            if following:
                words[following + L_PREV] = 0
            else:
                queue[Q_LAST] = 0
            pending = queue[Q_PENDING] - 1
            queue[Q_PENDING] = pending
            live = words[S_LIVE] - size
            words[S_LIVE] = live
            if not live:
                words[S_ENDS] = log.empty  # the next messages use the same pages again
            elif live >= CROWDED:
                self._free_memory(at, size)
            elif halves[HALF_HEAD] == at + size:
                halves[HALF_HEAD] = at  # the newest record: the next one goes in its place
            elif halves[HALF_TAIL] == at:
                halves[HALF_TAIL] = at + size
            if pending >= CROWDED:
                self.offer(target.row + Q_SENDING)
            if expires > now:
                words[S_DIRTY] = CLEAN
                if waiter_id or queue[Q_OWED]:
                    self.note_take(target.row, now, target.taken, waiter_id)
                target.taken = now
                return body
            self.count_drop(target.row, EXPIRED)
            words[S_DIRTY] = CLEAN

    def park_receiver(self, target: Target, now: float, waiter_id: int) -> None:
        """Park a waiter id at the queue of `target`, which its receiver found empty; or take it out
        of the waiter set, if its receiver leaves. See `take`."""
        self.note_look(target.row, now, target.taken, waiter_id >= WOKEN)
        target.taken = 0.0
        if waiter_id >= LEAVING:
            self.unpark(target.row, waiter_id % WOKEN)
        else:
            self.park(target.row, waiter_id % WOKEN)

    def peek(self, row: int) -> Taken | None:
        """Return the oldest message of the queue at `row` without taking it; None if empty."""
        at = self.words[row + Q_FIRST]
        return self._read(row, self.log.checked(at)) if at else None

    def pop(self, row: int) -> None:
        """Remove the message that `peek` returned."""
        words = self.words
        words[S_DIRTY] = DIRTY
        self._free(row, words[row + Q_FIRST])
        words[S_DIRTY] = CLEAN

    def _read(self, row: int, at: int) -> Taken:
        """Return the message in the record at `at`; check every field before it is used."""
        buffer = self.buffer
        size, state, seq, _, _, owner, length, expires, _, locals_length, check = (
            RECORD.unpack_from(buffer, at * WORD)
        )
        if owner != row or state != LIVE or size != record_words(length, locals_length):
            raise _not_a_message(at)
        start = (at + RECORD_WORDS) * WORD
        local_parts = bytes(buffer[start : start + locals_length]) if locals_length else b""
        start += locals_length
        body = buffer[start : start + length]
        if check != checksum(seq, local_parts, body):
            raise _not_a_message(at)
        return Taken(seq, expires, local_parts, body)

    def _free(self, row: int, at: int) -> None:
        """Take the record at `at` out of the log and out of its queue at `row`."""
        words, halves = self.words, self.halves
        size = halves[2 * at + L_SIZE]
        halves[2 * at + L_STATE] = DEAD
        following, before = words[at + L_NEXT], words[at + L_PREV]
        if following:
            words[self.log.checked(following) + L_PREV] = before
        else:
            words[row + Q_LAST] = before
        if before:
            words[self.log.checked(before) + L_NEXT] = following
        else:
            words[row + Q_FIRST] = following
        pending = words[row + Q_PENDING] - 1
        words[row + Q_PENDING] = pending
        live = words[S_LIVE] - size
        words[S_LIVE] = live
        if not live:
            words[S_ENDS] = self.log.empty
        elif live >= CROWDED:
            self._free_memory(at, size)
        elif halves[HALF_TAIL] == at:
            halves[HALF_TAIL] = at + size
        if pending >= CROWDED:
            self.offer(row + Q_SENDING)

    def _free_memory(self, at: int, size: int) -> None:
        """The record at `at` is no longer live, and senders wait for memory."""
        if not self.words[S_LIVE] & COUNT:
            self.words[S_ENDS] = self.log.empty
        elif self.halves[HALF_TAIL] == at:
            self.halves[HALF_TAIL] = at + size
        if self.has_memory():
            self.offer(S_SENDING)

    def _make_room(self, size: int, now: float, sender: int = RUNG) -> int:
        """Return where a record of `size` words can be written, or 0. Leaves the dirty word set."""
        words, log = self.words, self.log
        if (words[S_LIVE] & COUNT) + size > log.max_live:
            self.sweep_log(EXPIRED_AT_ONCE, now)
            if (words[S_LIVE] & COUNT) + size > log.max_live:
                self.lack = MESSAGES
                return 0
        live = words[S_LIVE]
        if (
            live >= CROWDED
            and live - CROWDED + size > words[S_ENOUGH]  # else there is enough for all
            and self.is_promised(S_SENDING, now, sender)
        ):
            self.lack = PROMISED
            return 0
        words[S_DIRTY] = DIRTY
        at = log.make_room(size, now)
        if not at:
            self.lack = MACHINE
        return at

    def drop_expired(self, row: int, now: float) -> int:
        """Drop expired messages at the front of a queue; return how many are still pending."""
        words, doubles = self.words, self.doubles
        for _ in range(EXPIRED_AT_ONCE):
            at = words[row + Q_FIRST]
            if not at or doubles[self.log.checked(at) + L_EXPIRES] > now:
                break
            words[S_DIRTY] = DIRTY
            self._expire(at)
            words[S_DIRTY] = CLEAN
        return words[row + Q_PENDING] & COUNT

    def _expire(self, at: int) -> None:
        """Drop an expired live record. With the dirty word set."""
        row = self.queues.checked(self.halves[2 * at + L_QUEUE])
        self._free(row, at)
        self.count_drop(row, EXPIRED)
        owner = self.words[row + Q_OWNER]
        if owner and self.doubles[self.checked_process(owner) + P_DEAD_SINCE]:
            # The only reader is dead: `bury` no longer has to wait before it ends its memberships.
            self.doubles[owner + P_DEAD_SINCE] = LONG_DEAD

    def count_refusal(self, row: int, count: int) -> None:
        """Count messages that were refused because the queue at `row` was full, or, with row 0,
        because memory was. A count of -1 takes back one that was counted."""
        for word in (row + Q_REFUSED, S_REFUSED) if row else (S_REFUSED,):
            self.words[word] = max(self.words[word] + count, 0)  # there may have been a flush

    def count_drop(self, row: int, reason: int, count: int = 1, local: str = "") -> None:
        """Count messages of the queue at `row` that nobody will receive. `local` is the local part
        of the channel that they were sent to, if that is known."""
        self.words[row + Q_DROPS + reason] += count
        self.words[S_DROPS + reason] += count
        if reason not in self.dropped:
            self.dropped[reason] = self.queues.name(row).decode("ascii", "replace") + local

    def count_taken(self, target: Target, reason: int, count: int = 1, local: str = "") -> int:
        """`count_drop` for messages that had already been taken out of the queue of `target`.
        Returns its row, or 0 if that is gone."""
        row = self.find(target)
        if row:
            self.count_drop(row, reason, count, local)
        else:
            self.words[S_DROPS + reason] += count
        return row

    def checked_process(self, reference: int) -> int:
        """Return `reference` if the row of a process begins there, or raise CorruptStore."""
        place = reference - self.layout.processes
        if place % PROCESS_WORDS or not 0 <= place < MAX_PROCESSES * PROCESS_WORDS:
            raise CorruptStore(f"processes: no row begins at word {reference}")
        return reference

    # -- queues -----------------------------------------------------------------------------------

    def find(self, target: Target) -> int:
        """Return the row of `target`'s queue and note it in the target; 0 if there is none."""
        words = self.words
        row = target.row
        if words[row + R_GENERATION] != target.generation:
            row = self.queues.find(target.queue)
            if row:
                target.point_to(row, words)
                if target.capacity:
                    words[row + Q_CAPACITY] = target.capacity  # read by `inspection`
        return row

    def fix(self, target: Target, row: int, generation: int) -> Target:
        """Point `target` to the queue at `row` for good: if that is gone, it is not made again."""
        target.point_to(row, self.words)
        target.generation, target.fixed = generation, True
        return target

    def bind(self, target: Target, now: float) -> int:
        """Return the row of `target`'s queue; make it if there is none; 0 if that is impossible."""
        if target.fixed:
            return 0
        row = self.find(target)
        if row:
            return row
        if not self.queues.ensure_room():
            self.reclaim(now, 0.0, EXPIRED_AT_ONCE * 2)
        if self.queues.ensure_room():
            words = self.words
            words[S_DIRTY] = DIRTY
            generation = self.advance_counter()
            row = self.queues.insert(target.queue, generation, {Q_CAPACITY: target.capacity})
            self.doubles[row + Q_CREATED] = self.doubles[row + Q_SEEN_AT] = now
            words[S_DIRTY] = CLEAN
            target.point_to(row, words)
        else:
            self.lack = CHANNELS if self.queues.is_full else MACHINE
        return row

    def require(self, target: Target, now: float) -> int:
        """`bind`, or raise LimitReached."""
        row = self.bind(target, now)
        if not row:
            name = target.queue.decode("ascii")
            raise LimitReached(f"no room for channel {name!r}: {self.why_no_channel(self.lack)}")
        return row

    def why_no_channel(self, lack: int) -> str:
        """Why a queue that was asked for could not be made, and the remedy. `lack`: CHANNELS or
        MACHINE."""
        if lack == CHANNELS:
            return (
                f"{self.queues.used} channels are in use, which is as many as the segment has room "
                "for. Use fewer, or raise message_memory or group_memory in all processes of this "
                "prefix"
            )
        return f"{self.queues.used} channels are in use, and there is no memory for more: " + (
            self.shortage()
        )

    def pick_if_pending(self, row: int) -> int:
        """`pick` for the queue at `row` if a message is pending there; else return 0. For a set of
        senders (see `room`), if there is room."""
        words = self.words
        room = self.is_room(row)
        if row == S_SENDING:
            return self.pick_sender(row) if self.has_memory() else 0
        try:
            queue = self.queues.checked(row - Q_SENDING if room else row)
        except CorruptStore:
            return 0  # rings come from other processes, and may be older than a flush
        if not words[queue + R_GENERATION]:
            return 0
        if room:
            return self.pick_sender(row) if self.has_room(row) else 0
        if words[row + Q_PENDING] & COUNT:
            return self.pick_another(row)
        self.forget_ring(row)
        return 0

    def find_unexpired(self, target: Target, now: float) -> int:
        """`find` for a queue, and drop the expired messages at its front."""
        row = self.find(target)
        if row:
            self.drop_expired(row, now)
        return row

    def reclaim(self, now: float, idle: float, limit: int) -> None:
        """Free rows of queues that nobody uses and that got no message for `idle` seconds."""
        words, doubles = self.words, self.doubles
        budget = EXPIRED_AT_ONCE
        for row in self.queues.sweep(limit):
            if words[row + Q_PENDING] >= CROWDED:
                place = row + Q_SENDING
                self.tend(place, now, self.has_room(place))
            if words[row + Q_SENT] != words[row + Q_SEEN]:
                words[row + Q_SEEN] = words[row + Q_SENT]
                doubles[row + Q_SEEN_AT] = now
                if idle:
                    continue
            if words[row + Q_FIRST]:
                if idle and doubles[self.log.checked(words[row + Q_FIRST]) + L_EXPIRES] <= now:
                    before = words[row + Q_PENDING] & COUNT
                    budget -= before - self.drop_expired(row, now)
                    if budget <= 0:
                        return  # the next calls do the others
                continue
            if (
                words[row + Q_MEMBERS]
                or words[row + Q_OWNER]
                or now - doubles[row + Q_SEEN_AT] < idle
            ):
                continue
            if words[row + Q_WAITING] or words[row + Q_SENDING]:
                self.prune(row)
                self.prune(row, Q_SENDING)
                if words[row + Q_WAITING] or words[row + Q_SENDING]:
                    continue
            words[S_DIRTY] = DIRTY
            self.queues.remove(row)
            words[S_DIRTY] = CLEAN

    def sweep_log(self, limit: int, now: float) -> bool:
        """Free up to `limit` dead or expired records at the tail of the log. Return whether there
        may be more."""
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

    # -- glances: without the lock, so what they read may be changing -----------------------------

    def is_awaited(self, row: int) -> bool:
        """Return whether somebody waits at the queue at `row`."""
        return self.words[row + Q_WAITING] != 0

    def front(self, row: int, now: float) -> Front:
        """Return how many unexpired messages are pending at `row`, and since when."""
        words = self.words[row : row + QUEUE_WORDS]
        return read_front(
            self.layout, lambda at, size: self.buffer[at : at + size], row, words, now
        )


def _not_a_message(at: int) -> CorruptStore:
    return CorruptStore(
        f"a queue leads to word {at} of the log, where there is no intact message of that queue"
    )


def checksum(seq: int, local_parts: bytes, body: bytes) -> int:
    """Return 32 bits over a message as it is in the log; over both ends of a large one.

    Adler-32 is the fastest checksum for short strings in the standard library. It uses 32 bits of
    its start value; from Python 3.15 on, it warns if there are more.
    """
    if len(body) > _CHECKED:
        body = body[: _CHECKED // 2] + body[-_CHECKED // 2 :]
    return adler32(body, (seq ^ adler32(local_parts) if local_parts else seq) & 0xFFFFFFFF)
