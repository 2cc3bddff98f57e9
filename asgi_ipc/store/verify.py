"""Everything that is true of a store whenever nobody is inside a section, and what of it is not.

The tests hold every operation to this list after every death, and the command line shows it to
whoever suspects a segment. It only reads, follows no reference that it has not checked, and looks
at nothing more often than there are rows and words, whatever bytes it is given.

It does not use the walks of the store itself: those raise at the first thing that is wrong, and a
mistake in one of them would be made here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import isnan
from zlib import crc32

from ..errors import CorruptStore, InvalidName
from ..names import MAX_NAME, check_channel, check_group, split
from .layout import (
    CLEAN,
    DEAD,
    DIRTY,
    FLUSHING,
    G_COUNT,
    G_FIRST,
    G_RECENT,
    G_VERSION,
    H_GROUP_MEMORY,
    H_LOCK_KIND,
    H_MAGIC,
    H_MAX_MESSAGE,
    H_MESSAGE_MEMORY,
    H_MODE,
    H_SIZE,
    H_VERSION,
    HALF_HEAD,
    HALF_TAIL,
    L_CHECK,
    L_EXPIRES,
    L_LENGTH,
    L_LOCALS,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SENT,
    L_SEQ,
    L_SIZE,
    L_STATE,
    LIVE,
    LOCK_FILE,
    LOCK_MUTEX,
    M_EXPIRES,
    M_GROUP,
    M_NEXT,
    M_PREV,
    M_QUEUE,
    M_QUEUE_GENERATION,
    M_QUEUE_NEXT,
    M_QUEUE_PREV,
    MAGIC,
    MAX_PROCESSES,
    MAX_WAITERS,
    P_ATTACHED,
    P_DEAD_SINCE,
    P_GENERATION,
    P_OWNED,
    P_PID,
    PAGE,
    PROCESS_WORDS,
    Q_FIRST,
    Q_FIRST_MEMBER,
    Q_LAST,
    Q_MEMBERS,
    Q_NEXT_OWNED,
    Q_OWNER,
    Q_OWNER_GENERATION,
    Q_PENDING,
    Q_WAITERS,
    Q_WAITING,
    R_BUCKET,
    R_CHAIN,
    R_GENERATION,
    R_KEY,
    RECENT_CHANGES,
    RECORD_WORDS,
    S_BIGGEST,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_EPOCH,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
    S_SWEEP_AT,
    T_FREE,
    T_HIGH,
    T_RESERVED,
    T_USED,
    VERSION,
    W_GENERATION,
    W_PROCESS,
    W_PROCESS_GENERATION,
    WAITER_SET_WORDS,
    WAITER_WORDS,
    WORD,
    record_words,
)
from .queues import checksum
from .store import Store
from .table import Table

INTERRUPTED = "dirty: a call was interrupted; the next one recovers"

_ENOUGH = 100  # complaints after which nobody reads on
_LATE = 1.0  # seconds that a time may lie ahead: `now` was read before the lock was taken
_DUE = 3600.0  # seconds that upkeep may be due ahead; it is due every second


def verify(store: Store, now: float) -> list[str]:
    """What is wrong with `store`, in words, the most basic first; [] when all is well.

    For whoever holds the lock; `now` in seconds, as in every call of the store. Of a dirty store
    only what recovery relies on is looked at. Changes nothing and raises nothing.
    """
    return list(islice(_Verifier(store, now).all(), _ENOUGH))


class _Verifier:
    """One look at a store. Each method yields what is wrong with its part of the memory map."""

    def __init__(self, store: Store, now: float) -> None:
        self.store = store
        self.now = now
        self.words, self.halves, self.doubles = store.words, store.halves, store.doubles
        self.counter = self.words[S_COUNTER]
        self.issued: dict[int, str] = {}  # what each value of the counter was given to
        # References of the rows in use, by their names; empty where a table cannot be read.
        self.rows: dict[str, dict[int, bytes]] = {}
        self.records: dict[int, int] = {}  # live records by place: sequence number

    def all(self) -> Iterator[str]:
        yield from self.header()
        state = self.words[S_DIRTY]
        dirty = state != CLEAN
        if state == DIRTY:
            yield INTERRUPTED
        elif state == FLUSHING:
            yield INTERRUPTED + " (it completes a flush)"
            return
        elif dirty:
            yield f"the dirty word is {state}, which means nothing"
        for what in ("queues", "groups", "members"):
            yield from self.table_rows(getattr(self.store, what), dirty)
        yield from self.log(dirty)
        if dirty:
            return
        for what in ("queues", "groups", "members"):
            yield from self.hash_chains(getattr(self.store, what))
        yield from self.messages()
        yield from self.waiter_sets()
        yield from self.memberships()
        yield from self.processes()
        yield from self.owners()
        yield from self.waiters()

    # -- header -----------------------------------------------------------------------------------

    def header(self) -> Iterator[str]:
        words, layout = self.words, self.store.layout
        # A store on plain memory has no segment around it, and so no identity.
        if any(words[H_MAGIC : H_MODE + 1]):
            for at, what, wanted in (
                (H_MAGIC, "magic word", MAGIC),
                (H_VERSION, "layout version", VERSION),
                (H_SIZE, "size", layout.size),
                (H_MESSAGE_MEMORY, "message_memory", layout.message_memory),
                (H_GROUP_MEMORY, "group_memory", layout.group_memory),
                (H_MAX_MESSAGE, "max_message_size", layout.max_message_size),
            ):
                if words[at] != wanted:
                    yield f"header: the {what} is {words[at]}, not {wanted}"
            if words[H_LOCK_KIND] not in (LOCK_MUTEX, LOCK_FILE):
                yield f"header: there is no lock of kind {words[H_LOCK_KIND]}"
        if len(self.store.buffer) != layout.size:
            yield f"header: {len(self.store.buffer)} bytes of memory, not {layout.size}"
        if not 0 < words[S_EPOCH] <= self.counter:
            yield f"header: the flush epoch is {words[S_EPOCH]}, the counter {self.counter}"
        if words[S_SEQ_BASE] > words[S_SEQ]:
            yield f"header: {words[S_SEQ]} messages in all, {words[S_SEQ_BASE]} before the flush"
        yield from self.past(S_SINCE, "header: the time of creation or flush")
        for at, what in ((S_SWEEP_AT, "sweep"), (S_BURY_AT, "look at who lives")):
            if not self.doubles[at] <= self.now + _DUE:
                yield f"header: the next {what} is due at {self.doubles[at]}, now is {self.now}"

    def past(self, at: int, what: str) -> Iterator[str]:
        if not self.doubles[at] <= self.now + _LATE:
            yield f"{what} is {self.doubles[at]}, now is {self.now}"

    def unique(self, generation: int, what: str) -> Iterator[str]:
        """A generation is a value of the counter, given once."""
        if generation > self.counter:
            yield f"{what}: generation {generation} is over the counter, {self.counter}"
        elif generation in self.issued:
            yield f"{what}: generation {generation} is also that of {self.issued[generation]}"
        self.issued[generation] = what

    # -- tables -----------------------------------------------------------------------------------

    def table_rows(self, table: Table, dirty: bool) -> Iterator[str]:
        """The rows in use: primary, so it holds for a dirty store as well."""
        words, what = self.words, table.what
        found = self.rows[what] = {}
        high, reserved = words[table.state + T_HIGH], words[table.state + T_RESERVED]
        width = table.row_words
        whole = -(-table.max_rows * width * WORD // PAGE) * PAGE
        if high > table.max_rows or reserved > whole or high * width * WORD > reserved:
            yield (
                f"{what}: {high} rows, for which {reserved} bytes are reserved, in a table of "
                f"{table.max_rows} rows and {whole} bytes"
            )
            return
        names: set[tuple[bytes, int]] = set()
        for row in range(table.base, table.base + high * width, width):
            generation = words[row + R_GENERATION]
            if not generation:
                continue
            key, name = words[row + R_KEY], table.name(row)
            found[row] = name
            label = f"{what}: row {row} ({name[:MAX_NAME].decode('ascii', 'replace')!r})"
            if not dirty:
                yield from self.unique(generation, label)
            salt = words[row + M_GROUP] if what == "members" else 0
            yield from self.name(label, what, name, key)
            if key >> 32 != crc32(name, salt & 0xFFFFFFFF):
                yield f"{label}: the hash is not that of the name"
            if (name, salt) in names:
                yield f"{label}: there is another row of this name"
            names.add((name, salt))

    def name(self, label: str, what: str, name: bytes, key: int) -> Iterator[str]:
        if key & 0xFFFFFFFF != len(name):
            yield f"{label}: a name of {key & 0xFFFFFFFF} bytes"
            return
        try:
            text = name.decode("ascii")
            if what == "groups":
                check_group(text)
            elif split(check_channel(text))[1] and what == "queues":
                yield f"{label}: a queue has no local part"
        except (InvalidName, UnicodeDecodeError):
            yield f"{label}: not a valid name"

    def hash_chains(self, table: Table) -> Iterator[str]:
        """Every row in use is in its bucket's chain, every other one in the free list, once."""
        words, what, width = self.words, table.what, table.row_words
        used = self.rows[what]
        high = words[table.state + T_HIGH]
        if high > table.max_rows or high * width * WORD > words[table.state + T_RESERVED]:
            return  # `table_rows` has said so
        rows = range(table.base, table.base + high * width, width)
        if words[table.state + T_USED] != len(used):
            yield f"{what}: {words[table.state + T_USED]} rows counted, {len(used)} in use"
        reached: set[int] = set()
        for bucket in rows:
            row = words[bucket + R_BUCKET]
            while row:
                if row not in used:
                    yield f"{what}: bucket {bucket} leads to {row}, which is no row in use"
                    break
                if row in reached:
                    yield f"{what}: row {row} is in hash chains twice"
                    break
                reached.add(row)
                if table.base + _bucket(words[row + R_KEY] >> 32, high) * width != bucket:
                    yield f"{what}: row {row} is in the chain of another bucket, {bucket}"
                row = words[row + R_CHAIN]
        for row in used.keys() - reached:
            yield f"{what}: row {row} is in no hash chain"
        free: set[int] = set()
        row = words[table.state + T_FREE]
        while row:
            if row not in rows or row in used:
                yield f"{what}: the free list leads to {row}, which is no free row"
                break
            if row in free:
                yield f"{what}: the free list goes round in a circle at {row}"
                break
            free.add(row)
            row = words[row + R_CHAIN]
        if len(free) + len(used) != len(rows):
            yield f"{what}: {len(rows)} rows, {len(used)} in use, {len(free)} in the free list"

    # -- the log ----------------------------------------------------------------------------------

    def log(self, dirty: bool) -> Iterator[str]:
        words, halves, log = self.words, self.halves, self.store.log
        head, tail, mark = halves[HALF_HEAD], halves[HALF_TAIL], words[S_MARK]
        if not log.start < mark <= log.end or mark * WORD % PAGE:
            yield f"log: the mark is {mark}, in a log from {log.start} to {log.end}"
            return
        if not (log.start <= head <= mark and log.start <= tail <= mark) or head % 2 or tail % 2:
            yield f"log: it goes from {tail} to {head}, outside of {log.start} to {mark}"
            return
        live = biggest = 0
        sequence: dict[int, int] = {}
        at, wrapped = tail, False
        while at != head:
            if at == mark:
                if wrapped:
                    yield "log: it goes round in a circle"
                    return
                at, wrapped = log.start, True
                continue
            size, state = halves[2 * at + L_SIZE], halves[2 * at + L_STATE]
            if size < 2 or size % 2 or state not in (LIVE, DEAD):
                yield f"log: no record begins at {at}"
                return
            if at + size > mark or at < head < at + size:
                yield f"log: the record at {at} reaches over the end, {min(mark, head)}"
                return
            if state == LIVE:
                if not RECORD_WORDS <= size <= log.max_record:
                    yield f"log: the record at {at} has {size} words"
                    return
                seq = self.records[at] = words[at + L_SEQ]
                if seq in sequence and not dirty:  # a move that was not finished
                    yield f"log: the records at {sequence[seq]} and {at} have one number, {seq}"
                sequence[seq] = at
                live += size
                biggest = max(biggest, size)
                yield from self.record(at, size, seq, dirty)
            at += size
        if dirty:
            return
        if words[S_LIVE] != live:
            yield f"log: {words[S_LIVE]} live words counted, {live} there"
        if live > log.max_live:
            yield f"log: {live} live words, {log.max_live} are allowed"
        if not live and (head, tail) != (log.start, log.start):
            yield f"log: nothing is live, and it goes from {tail} to {head}"
        if words[S_BIGGEST] < biggest:
            yield f"log: the biggest record has {biggest} words, {words[S_BIGGEST]} are noted"
        if words[S_LIMIT] > mark or head < tail <= words[S_LIMIT]:
            yield f"log: the head may move to {words[S_LIMIT]}, over the tail {tail} or mark {mark}"

    def record(self, at: int, size: int, seq: int, dirty: bool) -> Iterator[str]:
        halves, queue = self.halves, self.halves[2 * at + L_QUEUE]
        length, parts = halves[2 * at + L_LENGTH], halves[2 * at + L_LOCALS]
        name = self.rows["queues"].get(queue)
        if name is None:
            yield f"log: the record at {at} is for {queue}, which is no queue"
        elif parts and not name.endswith(b"!"):
            yield f"log: the record at {at} has local parts, and its queue {name!r} has not"
        if not 0 < seq <= self.words[S_SEQ] and not dirty:
            yield f"log: the record at {at} has the number {seq}, the newest is {self.words[S_SEQ]}"
        if isnan(self.doubles[at + L_EXPIRES]):
            yield f"log: the record at {at} expires at no time"
        yield from self.past(at + L_SENT, f"log: the time when the record at {at} was sent")
        if record_words(length, parts) != size:
            yield f"log: the record at {at} has {size} words for {parts} and {length} bytes"
            return
        start = (at + RECORD_WORDS) * WORD
        body = start + parts
        buffer = self.store.buffer
        summed = checksum(seq, bytes(buffer[start:body]), bytes(buffer[body : body + length]))
        if summed != halves[2 * at + L_CHECK]:
            yield f"log: the message at {at} has been altered"

    # -- queues -----------------------------------------------------------------------------------

    def messages(self) -> Iterator[str]:
        """The list of each queue is its live records, in order of their numbers."""
        words, halves = self.words, self.halves
        of_queue: dict[int, list[int]] = {row: [] for row in self.rows["queues"]}
        for at in sorted(self.records, key=self.records.__getitem__):
            of_queue.setdefault(halves[2 * at + L_QUEUE], []).append(at)
        for row, name in self.rows["queues"].items():
            label = f"queue {name.decode('ascii', 'replace')!r}"
            there = of_queue[row]
            if words[row + Q_PENDING] != len(there):
                yield f"{label}: {words[row + Q_PENDING]} messages counted, {len(there)} there"
            at, before = words[row + Q_FIRST], 0
            for wanted in there:
                if at != wanted:
                    yield f"{label}: the list leads to {at}, the next record is at {wanted}"
                    break
                if words[at + L_PREV] != before:
                    yield f"{label}: the record at {at} follows {before}, not {words[at + L_PREV]}"
                at, before = words[at + L_NEXT], at
            else:
                if at:
                    yield f"{label}: the list leads on to {at}, after its last record"
                if words[row + Q_LAST] != before:
                    yield f"{label}: the last record is at {before}, not {words[row + Q_LAST]}"

    def waiter_sets(self) -> Iterator[str]:
        # A summary bit over an empty word is well: parking sets it first, and a death between
        # the two must not leave a waiter whom nobody sees.
        words = self.words
        for row, name in self.rows["queues"].items():
            label = f"queue {name.decode('ascii', 'replace')!r}"
            summary = words[row + Q_WAITING]
            if summary >> WAITER_SET_WORDS:
                yield f"{label}: the waiter set has {WAITER_SET_WORDS} words, not {summary:#x}"
            for word in range(WAITER_SET_WORDS):
                if words[row + Q_WAITERS + word] and not summary >> word & 1:
                    yield f"{label}: waiters in word {word} of the set, which the summary lacks"
            if words[row + Q_WAITERS] & 1:
                yield f"{label}: waiter 0, who is nobody, is parked"

    # -- groups -----------------------------------------------------------------------------------

    def memberships(self) -> Iterator[str]:
        words, rows = self.words, self.rows
        of_group: dict[int, set[int]] = {row: set() for row in rows["groups"]}
        of_queue: dict[int, set[int]] = {row: set() for row in rows["queues"]}
        for member, name in rows["members"].items():
            label = f"member {name.decode('ascii', 'replace')!r} at {member}"
            group, queue = words[member + M_GROUP], words[member + M_QUEUE]
            if group in of_group:
                of_group[group].add(member)
            else:
                yield f"{label}: its group {group} is none"
            if queue in of_queue:
                of_queue[queue].add(member)
                if rows["queues"][queue] != (name[: name.find(b"!") + 1] or name):
                    yield f"{label}: it leads to the queue of {rows['queues'][queue]!r}"
                if words[member + M_QUEUE_GENERATION] > words[queue + R_GENERATION]:
                    yield f"{label}: it knows a newer queue than there is"
            else:
                yield f"{label}: its queue {queue} is none"
            if isnan(self.doubles[member + M_EXPIRES]):
                yield f"{label}: it ends at no time"
        for row, members in of_group.items():
            label = f"group {rows['groups'][row].decode('ascii', 'replace')!r}"
            if words[row + G_VERSION] >> 62:
                yield f"{label}: the version {words[row + G_VERSION]} is no count of changes"
            for word in range(row + G_RECENT, row + G_RECENT + RECENT_CHANGES):
                try:
                    if words[word]:
                        self.store.members.checked(words[word] >> 1)
                except CorruptStore as error:
                    yield f"{label}: one of its last changes: {error}"
            if not members:
                yield f"{label}: it has no members, and was not removed"
            yield from self.listed(label, row, members, G_FIRST, G_COUNT, M_NEXT, M_PREV)
        for row, members in of_queue.items():
            yield from self.listed(
                f"queue {rows['queues'][row].decode('ascii', 'replace')!r}",
                row,
                members,
                Q_FIRST_MEMBER,
                Q_MEMBERS,
                M_QUEUE_NEXT,
                M_QUEUE_PREV,
            )

    def listed(
        self,
        label: str,
        row: int,
        members: set[int],
        first: int,
        count: int,
        after: int,
        prior: int,
    ) -> Iterator[str]:
        """The list from the word `first` of `row` holds `members`, each once, linked both ways."""
        words = self.words
        if words[row + count] != len(members):
            yield f"{label}: {words[row + count]} members counted, {len(members)} there"
        left = set(members)
        member, before = words[row + first], 0
        while member:
            if member not in left:
                again = "comes to it twice" if member in members else "it is none of its"
                yield f"{label}: the list of members leads to {member}, and {again}"
                return
            left.remove(member)
            if words[member + prior] != before:
                yield f"{label}: member {member} follows {before}, not {words[member + prior]}"
            member, before = words[member + after], member
        for member in left:
            yield f"{label}: member {member} is not in the list"

    # -- processes --------------------------------------------------------------------------------

    def processes(self) -> Iterator[str]:
        words = self.words
        for index in range(MAX_PROCESSES):
            row = self.store.process_row(index)
            generation = words[row + P_GENERATION]
            if not generation:
                continue
            label = f"process {words[row + P_PID]} in row {index}"
            yield from self.unique(generation, label)
            if not 0 < words[row + P_PID] < 1 << 31:
                yield f"{label}: that is not the id of a process"
            yield from self.past(row + P_ATTACHED, f"{label}: the time when it attached")
            yield from self.past(row + P_DEAD_SINCE, f"{label}: the time of its death")

    def known(self, process: int, generation: int) -> bool:
        """Whether a reference and a generation are those of a process that is entered."""
        place = process - self.store.layout.processes
        if place % PROCESS_WORDS or not 0 <= place < MAX_PROCESSES * PROCESS_WORDS:
            return False
        return bool(generation) and self.words[process + P_GENERATION] == generation

    def owners(self) -> Iterator[str]:
        """What each process owns is in its list, once, and nothing else is."""
        words, queues = self.words, self.rows["queues"]
        owned: dict[int, set[int]] = {}
        for row, name in queues.items():
            owner = words[row + Q_OWNER]
            if not owner:
                continue
            label = f"queue {name.decode('ascii', 'replace')!r}"
            if not name.endswith(b"!"):
                yield f"{label}: it has an owner, and is no process-specific one"
            if self.known(owner, words[row + Q_OWNER_GENERATION]):
                owned.setdefault(owner, set()).add(row)
            else:
                yield f"{label}: its owner {owner} is no process that is attached"
        for index in range(MAX_PROCESSES):
            process = self.store.process_row(index)
            if not words[process + P_GENERATION]:
                continue
            left = owned.get(process, set())
            row = words[process + P_OWNED]
            while row:
                if row not in left:
                    yield f"process row {index}: the list of what it owns leads to {row}"
                    break
                left.remove(row)
                row = words[row + Q_NEXT_OWNED]
            for row in left:
                yield f"process row {index}: it owns {row}, which is not in its list"

    def waiters(self) -> Iterator[str]:
        words = self.words
        for index in range(MAX_WAITERS):
            at = self.store.layout.waiters + index * WAITER_WORDS
            generation, of = words[at + W_GENERATION], words[at + W_PROCESS_GENERATION]
            if not generation and not of:
                continue
            label = f"waiter {index}"
            if generation:
                yield from self.unique(generation, label)
            if not index:
                yield "waiter 0, who is nobody, is in use"
            process = words[at + W_PROCESS]
            if not self.known(process, of):
                yield f"{label}: its process {process} is none that is attached"
            elif self.doubles[process + P_DEAD_SINCE]:
                yield f"{label}: its process is known to be dead"


def _bucket(hashed: int, high: int) -> int:
    """The bucket of a hash among `high`, see `table`."""
    low = 1 << (high.bit_length() - 1)
    index = hashed & (2 * low - 1)
    return index if index < high else index - low
