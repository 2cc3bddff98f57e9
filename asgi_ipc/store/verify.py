"""Checks everything that must be true of a store while nobody is inside a section.

Whatever the bytes are, it must not write to the store, raise, follow a reference that it has not
checked, or look at anything more often than there are rows and words. It must not use the loops of
the store itself either: these raise at the first thing that is wrong, and a mistake in one of them
would be repeated here. The tests check every operation with it after every death, and the
command line shows its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress, islice
from math import isnan
from typing import NamedTuple
from zlib import crc32

from ..errors import CorruptStore, InvalidName
from ..names import MAX_NAME, check_channel, check_group, split
from . import layout as at
from .queues import checksum
from .store import Store
from .table import Table

INTERRUPTED = "dirty: a call was interrupted; the next call recovers the store"

_ENOUGH = 100  # complaints; nobody would read more
_LATE = 1.0  # seconds that a time may lie ahead: `now` was read before the lock was taken
_DUE = 3600.0  # seconds that upkeep may be due ahead; it is due every second


def verify(store: Store, now: float) -> list[str]:
    """Return what is wrong with `store`, in words, the most basic first; [] if it is intact.

    The caller holds the lock. `now` is in seconds, as in every call of the store. Of a dirty
    store, only a part of what recovery relies on is checked; of one that is being flushed, nothing.
    Changes nothing and raises nothing.
    """
    return list(islice(_Verifier(store, now).all(), _ENOUGH))


class _Links(NamedTuple):
    """The words that make a list of memberships."""

    first: int
    total: int
    following: int
    before: int


_OF_GROUP = _Links(at.G_FIRST, at.G_COUNT, at.M_NEXT, at.M_PREV)
_OF_QUEUE = _Links(at.Q_FIRST_MEMBER, at.Q_MEMBERS, at.M_QUEUE_NEXT, at.M_QUEUE_PREV)


class _Verifier:
    """One look at a store. Each method yields what is wrong with its part of the memory map."""

    def __init__(self, store: Store, now: float) -> None:
        self.store = store
        self.now = now
        self.words, self.halves, self.doubles = store.words, store.halves, store.doubles
        self.counter = self.words[at.S_COUNTER]
        self.issued: dict[int, str] = {}  # what each value of the counter was given to
        # By table: the name of each row in use, by its reference. Empty if it cannot be read.
        self.rows: dict[str, dict[int, bytes]] = {}
        self.records: dict[int, int] = {}  # the sequence number of each live record, by its place

    def all(self) -> Iterator[str]:
        store = self.store
        state = self.words[at.S_DIRTY]
        dirty = state != at.CLEAN
        if state == at.FLUSHING:
            yield INTERRUPTED + " (and completes a flush)"
            return
        yield from self.header()
        if state == at.DIRTY:
            yield INTERRUPTED
        elif dirty:
            yield f"the dirty word is {state}, which has no meaning"
        for table in (store.queues, store.groups, store.members):
            yield from self.table_rows(table, dirty)
        yield from self.log(dirty)
        if dirty:
            return
        for table in (store.queues, store.groups, store.members):
            yield from self.hash_chains(table)
        yield from self.messages()
        yield from self.waiter_sets()
        yield from self.memberships()
        yield from self.processes()
        yield from self.owners()
        yield from self.waiters()

    # -- header -----------------------------------------------------------------------------------

    def header(self) -> Iterator[str]:
        words, layout = self.words, self.store.layout
        # A store on plain memory is not in a segment, and has no identity.
        if any(words[at.H_MAGIC : at.H_MODE + 1]):
            for word, what, wanted in (
                (at.H_MAGIC, "magic word", at.MAGIC),
                (at.H_VERSION, "layout version", at.VERSION),
                (at.H_SIZE, "size", layout.size),
                (at.H_MESSAGE_MEMORY, "message_memory", layout.message_memory),
                (at.H_GROUP_MEMORY, "group_memory", layout.group_memory),
                (at.H_MAX_MESSAGE, "max_message_size", layout.max_message_size),
            ):
                if words[word] != wanted:
                    yield f"header: the {what} is {words[word]}, not {wanted}"
            if words[at.H_LOCK_KIND] not in (at.LOCK_MUTEX, at.LOCK_FILE):
                yield f"header: the kind of lock is {words[at.H_LOCK_KIND]}, which does not exist"
        if len(self.store.buffer) != layout.size:
            yield f"header: the memory has {len(self.store.buffer)} bytes, not {layout.size}"
        if not 0 < words[at.S_EPOCH] <= self.counter:
            yield (
                f"header: the flush epoch is {words[at.S_EPOCH]}, which is not between 1 and the "
                f"counter, {self.counter}"
            )
        if words[at.S_SEQ_BASE] > words[at.S_SEQ]:
            yield (
                f"header: the newest message has number {words[at.S_SEQ]}, and the last one before "
                f"the flush {words[at.S_SEQ_BASE]}"
            )
        yield from self.past(at.S_SINCE, "header: the time of creation or flush")
        for word, what in ((at.S_SWEEP_AT, "sweep"), (at.S_BURY_AT, "check for dead processes")):
            if not self.doubles[word] <= self.now + _DUE:
                yield f"header: the next {what} is due at {self.doubles[word]}, now is {self.now}"

    def past(self, word: int, what: str) -> Iterator[str]:
        if not self.doubles[word] <= self.now + _LATE:
            yield f"{what} is {self.doubles[word]}, which is not in the past; now is {self.now}"

    def unique(self, generation: int, what: str) -> Iterator[str]:
        """A generation is a value of the counter that was given out once."""
        if generation > self.counter:
            yield f"{what}: generation {generation} is above the counter, {self.counter}"
        elif generation in self.issued:
            yield f"{what}: generation {generation} also belongs to {self.issued[generation]}"
        self.issued[generation] = what

    # -- tables -----------------------------------------------------------------------------------

    def table_rows(self, table: Table, dirty: bool) -> Iterator[str]:
        """The rows in use. They are primary, so this is also true of a dirty store."""
        words, what = self.words, table.what
        found = self.rows[what] = {}
        high, reserved = words[table.state + at.T_HIGH], words[table.state + at.T_RESERVED]
        width = table.row_words
        whole = -(-table.max_rows * width * at.WORD // at.PAGE) * at.PAGE
        if high > table.max_rows or reserved > whole or high * width * at.WORD > reserved:
            yield (
                f"{what}: there cannot be {high} rows in {reserved} reserved bytes, in a table of "
                f"{table.max_rows} rows and {whole} bytes"
            )
            return
        names: set[tuple[bytes, int]] = set()
        for row in range(table.base, table.base + high * width, width):
            generation = words[row + at.R_GENERATION]
            if not generation:
                continue
            key, name = words[row + at.R_KEY], table.name(row)
            found[row] = name
            label = f"{what}: row {row} ({_text(name[:MAX_NAME])})"
            if not dirty:
                yield from self.unique(generation, label)
            salt = words[row + at.M_GROUP] if what == "members" else 0
            yield from self.name(label, what, name, key)
            if key >> 32 != crc32(name, salt & 0xFFFFFFFF):
                yield f"{label}: the hash does not match the name"
            if (name, salt) in names:
                yield f"{label}: another row has this name"
            names.add((name, salt))

    def name(self, label: str, what: str, name: bytes, key: int) -> Iterator[str]:
        if key & 0xFFFFFFFF != len(name):
            yield f"{label}: a name cannot have {key & 0xFFFFFFFF} bytes"
            return
        try:
            text = name.decode("ascii")
            if what == "groups":
                check_group(text)
            elif split(check_channel(text))[1] and what == "queues":
                yield f"{label}: the name of a queue cannot have a local part"
        except (InvalidName, UnicodeDecodeError):
            yield f"{label}: this is not a valid name"

    def hash_chains(self, table: Table) -> Iterator[str]:
        """Every row in use is once in its bucket's chain, and every other row in the free list."""
        words, what, width = self.words, table.what, table.row_words
        used = self.rows[what]
        high = words[table.state + at.T_HIGH]
        if high > table.max_rows or high * width * at.WORD > words[table.state + at.T_RESERVED]:
            return  # `table_rows` has reported it
        rows = range(table.base, table.base + high * width, width)
        if words[table.state + at.T_USED] != len(used):
            yield (
                f"{what}: {words[table.state + at.T_USED]} rows are counted as in use, not "
                f"{len(used)}"
            )
        reached: set[int] = set()
        for bucket in rows:
            row = words[bucket + at.R_BUCKET]
            while row:
                if row not in used:
                    yield f"{what}: bucket {bucket} leads to {row}, which is not a row in use"
                    break
                if row in reached:
                    yield f"{what}: row {row} is in the hash chains twice"
                    break
                reached.add(row)
                if table.base + _bucket(words[row + at.R_KEY] >> 32, high) * width != bucket:
                    yield f"{what}: row {row} is in the chain of the wrong bucket, {bucket}"
                row = words[row + at.R_CHAIN]
        for row in used.keys() - reached:
            yield f"{what}: row {row} is in no hash chain"
        free: set[int] = set()
        row = words[table.state + at.T_FREE]
        while row:
            if row not in rows or row in used:
                yield f"{what}: the free list leads to {row}, which is not a free row"
                break
            if row in free:
                yield f"{what}: the free list forms a loop at {row}"
                break
            free.add(row)
            row = words[row + at.R_CHAIN]
        if len(free) + len(used) != len(rows):
            yield (
                f"{what}: of {len(rows)} rows, {len(used)} are in use, and {len(free)} are in the "
                "free list"
            )

    # -- the log ----------------------------------------------------------------------------------

    def log(self, dirty: bool) -> Iterator[str]:
        words, halves, log = self.words, self.halves, self.store.log
        head, tail, mark = halves[at.HALF_HEAD], halves[at.HALF_TAIL], words[at.S_MARK]
        if not log.start < mark <= log.end or mark * at.WORD % at.PAGE:
            yield f"log: the mark is {mark}, in a log from {log.start} to {log.end}"
            return
        if not (log.start <= head <= mark and log.start <= tail <= mark) or head % 2 or tail % 2:
            yield (
                f"log: the tail is {tail} and the head {head}; they must be even and between "
                f"{log.start} and {mark}"
            )
            return
        live = biggest = 0
        sequence: dict[int, int] = {}
        record, wrapped = tail, False
        while record != head:
            if record == mark:
                if wrapped:
                    yield "log: the records form a loop"
                    return
                record, wrapped = log.start, True
                continue
            size, state = halves[2 * record + at.L_SIZE], halves[2 * record + at.L_STATE]
            if size < 2 or size % 2 or state not in (at.LIVE, at.DEAD):
                yield f"log: no record begins at {record}"
                return
            if record + size > mark or record < head < record + size:
                yield f"log: the record at {record} extends past the end, {min(mark, head)}"
                return
            if state == at.LIVE:
                if not at.RECORD_WORDS <= size <= log.max_record:
                    yield f"log: the record at {record} cannot have {size} words"
                    return
                seq = self.records[record] = words[record + at.L_SEQ]
                if seq in sequence and not dirty:  # in a dirty store, a move that was not finished
                    yield (
                        f"log: the records at {sequence[seq]} and {record} have the same number, "
                        f"{seq}"
                    )
                sequence[seq] = record
                live += size
                biggest = max(biggest, size)
                yield from self.record(record, size, seq, dirty)
            record += size
        if dirty:
            return
        counted = words[at.S_LIVE] & ~at.CROWDED
        if counted != live:
            yield f"log: {counted} words are counted as live, not {live}"
        if live > log.max_live:
            yield f"log: {live} words are live, and no more than {log.max_live} may be"
        if not live and (head, tail) != (log.start, log.start):
            yield f"log: nothing is live, but the tail is {tail} and the head {head}"
        if words[at.S_BIGGEST] < biggest:
            yield f"log: the biggest record has {biggest} words, not {words[at.S_BIGGEST]}"
        if words[at.S_LIMIT] > mark or head < tail <= words[at.S_LIMIT]:
            yield (
                f"log: the head may move to {words[at.S_LIMIT]}, which is past the tail {tail} or "
                f"the mark {mark}"
            )

    def record(self, record: int, size: int, seq: int, dirty: bool) -> Iterator[str]:
        halves, queue = self.halves, self.halves[2 * record + at.L_QUEUE]
        length, parts = halves[2 * record + at.L_LENGTH], halves[2 * record + at.L_LOCALS]
        label = f"log: the record at {record}"
        name = self.rows["queues"].get(queue)
        if name is None:
            yield f"{label} belongs to {queue}, which is not a queue"
        elif parts and not name.endswith(b"!"):
            yield f"{label} has local parts, and its queue {name!r} cannot have any"
        if not 0 < seq <= self.words[at.S_SEQ] and not dirty:
            yield f"{label} has the number {seq}, and the newest is {self.words[at.S_SEQ]}"
        if isnan(self.doubles[record + at.L_EXPIRES]):
            yield f"{label} has a time of expiry that is not a number"
        yield from self.past(record + at.L_SENT, f"{label}: the time when it was sent")
        if at.record_words(length, parts) != size:
            yield f"{label} has {size} words for {parts} bytes of local parts and {length} of body"
            return
        start = (record + at.RECORD_WORDS) * at.WORD
        body = start + parts
        buffer = self.store.buffer
        summed = checksum(seq, bytes(buffer[start:body]), bytes(buffer[body : body + length]))
        if summed != halves[2 * record + at.L_CHECK]:
            yield f"{label} has been altered: its checksum does not match"

    # -- queues -----------------------------------------------------------------------------------

    def messages(self) -> Iterator[str]:
        """The list of each queue is its live records, in the order of their numbers."""
        words, halves = self.words, self.halves
        of_queue: dict[int, list[int]] = {row: [] for row in self.rows["queues"]}
        for record in sorted(self.records, key=self.records.__getitem__):
            of_queue.setdefault(halves[2 * record + at.L_QUEUE], []).append(record)
        for row, name in self.rows["queues"].items():
            label = f"queue {_text(name)}"
            there = of_queue[row]
            counted = words[row + at.Q_PENDING] & ~at.CROWDED
            if counted != len(there):
                yield f"{label}: {counted} messages are counted as pending, not {len(there)}"
            record, before = words[row + at.Q_FIRST], 0
            for wanted in there:
                if record != wanted:
                    yield f"{label}: the list leads to {record}, not to the next record at {wanted}"
                    break
                if words[record + at.L_PREV] != before:
                    yield (
                        f"{label}: the record at {record} follows {before}, not "
                        f"{words[record + at.L_PREV]}"
                    )
                record, before = words[record + at.L_NEXT], record
            else:
                if record:
                    yield f"{label}: the list continues to {record}, after its last record"
                if words[row + at.Q_LAST] != before:
                    yield f"{label}: the last record is at {before}, not {words[row + at.Q_LAST]}"

    def waiter_sets(self) -> Iterator[str]:
        yield from self.waiter_set("memory", "set of senders", at.S_SENDING, at.S_LIVE)
        for row, name in self.rows["queues"].items():
            label = f"queue {_text(name)}"
            yield from self.waiter_set(label, "waiter set", row + at.Q_WAITING)
            yield from self.hints(label, row)
            sending, pending = row + at.Q_SENDING, row + at.Q_PENDING
            yield from self.waiter_set(label, "set of senders", sending, pending)

    def hints(self, label: str, row: int) -> Iterator[str]:
        """Nothing relies on them, but no process stores such values."""
        yield from self.past(row + at.Q_RUNG, f"{label}: the time of the last ring")
        for word, what in ((at.Q_QUICK, "receivers are quick"), (at.Q_OWED, "a ring is owed")):
            if self.words[row + word] > 1:
                yield f"{label}: whether {what} is {self.words[row + word]}, not 0 or 1"

    def waiter_set(self, label: str, what: str, place: int, count: int = 0) -> Iterator[str]:
        """A set whose summary is at `place`. That of senders shows in a `count`."""
        # A summary bit without a waiter, and a place that is crowded although nobody waits, are
        # allowed: parking sets them first, so that a death in between leaves no waiter that nobody
        # sees.
        words = self.words
        summary = words[place]
        if summary >> at.WAITER_SET_WORDS:
            yield (
                f"{label}: the summary of the {what} is {summary:#x}, and the set has "
                f"{at.WAITER_SET_WORDS} words"
            )
        if count and summary and not words[count] & at.CROWDED:
            yield f"{label}: senders wait, and the count does not say so"
        for word in range(at.WAITER_SET_WORDS):
            if words[place + 1 + word] and not summary >> word & 1:
                yield f"{label}: word {word} of the {what} is missing in its summary"
        if words[place + 1] & 1:
            yield f"{label}: waiter id 0, which stands for nobody, is parked"

    # -- groups -----------------------------------------------------------------------------------

    def memberships(self) -> Iterator[str]:
        words, rows = self.words, self.rows
        of_group: dict[int, set[int]] = {row: set() for row in rows["groups"]}
        of_queue: dict[int, set[int]] = {row: set() for row in rows["queues"]}
        for member, name in rows["members"].items():
            label = f"member {_text(name)} at {member}"
            group, queue = words[member + at.M_GROUP], words[member + at.M_QUEUE]
            if group in of_group:
                of_group[group].add(member)
            else:
                yield f"{label}: its group {group} does not exist"
            if queue in of_queue:
                of_queue[queue].add(member)
                if rows["queues"][queue] != (name[: name.find(b"!") + 1] or name):
                    yield f"{label}: it leads to the wrong queue, {_text(rows['queues'][queue])}"
                if words[member + at.M_QUEUE_GENERATION] > words[queue + at.R_GENERATION]:
                    yield f"{label}: its queue does not have the generation that it names yet"
            else:
                yield f"{label}: its queue {queue} does not exist"
            if isnan(self.doubles[member + at.M_EXPIRES]):
                yield f"{label}: its time of expiry is not a number"
        for row, members in of_group.items():
            label = f"group {_text(rows['groups'][row])}"
            if words[row + at.G_VERSION] >> 62:
                yield f"{label}: the version cannot be {words[row + at.G_VERSION]}"
            for word in range(row + at.G_RECENT, row + at.G_RECENT + at.RECENT_CHANGES):
                try:
                    if words[word]:
                        self.store.members.checked(words[word] >> 1)
                except CorruptStore:
                    yield f"{label}: a recent change names {words[word] >> 1}, which is no member"
            if not members:
                yield f"{label}: it has no members, and should have been removed"
            yield from self.listed(label, row, members, _OF_GROUP)
        for row, members in of_queue.items():
            label = f"queue {_text(rows['queues'][row])}"
            yield from self.listed(label, row, members, _OF_QUEUE)

    def listed(self, label: str, row: int, members: set[int], links: _Links) -> Iterator[str]:
        """The list of the group or queue at `row` is `members`, each once, linked both ways."""
        words = self.words
        if words[row + links.total] != len(members):
            yield f"{label}: {words[row + links.total]} members are counted, not {len(members)}"
        left = set(members)
        member, before = words[row + links.first], 0
        while member:
            if member not in left:
                why = "for the second time" if member in members else "which is not in it"
                yield f"{label}: the list of members leads to {member}, {why}"
                return
            left.remove(member)
            if words[member + links.before] != before:
                yield (
                    f"{label}: member {member} follows {before}, not {words[member + links.before]}"
                )
            member, before = words[member + links.following], member
        for member in left:
            yield f"{label}: member {member} is not in the list"

    # -- processes --------------------------------------------------------------------------------

    def in_use(self, rows: range, *words: int) -> Iterator[tuple[int, int]]:
        """Yield the index and the reference of each row in which one of `words` is not 0."""
        found: set[int] = set()
        for word in words:
            found.update(compress(rows, self.words[rows.start + word : rows.stop : rows.step]))
        for row in sorted(found):
            yield rows.index(row), row

    def processes(self) -> Iterator[str]:
        words = self.words
        for index, row in self.in_use(self.store.process_rows(), at.P_GENERATION):
            label = f"process {words[row + at.P_PID]} in row {index}"
            yield from self.unique(words[row + at.P_GENERATION], label)
            if not 0 < words[row + at.P_PID] < 1 << 31:
                yield f"{label}: this cannot be a process id"
            yield from self.past(row + at.P_ATTACHED, f"{label}: the time when it attached")
            yield from self.past(row + at.P_DEAD_SINCE, f"{label}: the time of its death")

    def known(self, process: int, generation: int) -> bool:
        """Return whether a reference and a generation are those of an attached process."""
        if process not in self.store.process_rows():
            return False
        return bool(generation) and self.words[process + at.P_GENERATION] == generation

    def owners(self) -> Iterator[str]:
        """The list of each process is the queues that it owns, each once."""
        words, queues = self.words, self.rows["queues"]
        owned: dict[int, set[int]] = {}
        for row, name in queues.items():
            owner = words[row + at.Q_OWNER]
            if not owner:
                continue
            label = f"queue {_text(name)}"
            if not name.endswith(b"!"):
                yield f"{label}: it has an owner, and is not process-specific"
            if self.known(owner, words[row + at.Q_OWNER_GENERATION]):
                owned.setdefault(owner, set()).add(row)
            else:
                yield f"{label}: its owner {owner} is not an attached process"
        for index, process in self.in_use(self.store.process_rows(), at.P_GENERATION):
            left = owned.get(process, set())
            row = words[process + at.P_OWNED]
            while row:
                if row not in left:
                    yield (
                        f"process row {index}: the list of its queues leads to {row}, which it "
                        "does not own, or for the second time"
                    )
                    break
                left.remove(row)
                row = words[row + at.Q_NEXT_OWNED]
            for row in left:
                yield f"process row {index}: the list of its queues lacks {row}, which it owns"

    def waiters(self) -> Iterator[str]:
        words = self.words
        rows = self.store.waiter_rows()
        for waiter_id, row in self.in_use(rows, at.W_GENERATION, at.W_PROCESS_GENERATION):
            generation, of = words[row + at.W_GENERATION], words[row + at.W_PROCESS_GENERATION]
            label = f"waiter id {waiter_id}"
            if generation:
                yield from self.unique(generation, label)
            if not waiter_id:
                yield f"{label}: it stands for nobody, and is in use"
            process = words[row + at.W_PROCESS]
            if not self.known(process, of):
                yield f"{label}: its process {process} is not an attached process"
            elif self.doubles[process + at.P_DEAD_SINCE]:
                yield f"{label}: its process is known to be dead"


def _text(name: bytes) -> str:
    return repr(name.decode("ascii", "replace"))


def _bucket(hashed: int, high: int) -> int:
    """Return the bucket of a hash among `high`, see `table`."""
    low = 1 << (high.bit_length() - 1)
    index = hashed & (2 * low - 1)
    return index if index < high else index - low
