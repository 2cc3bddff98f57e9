"""`verify` finds every kind of damage and says what it is, and finds nothing in an intact store."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from asgi_ipc.store import recovery
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import (
    DIRTY,
    FLUSHING,
    G_COUNT,
    G_FIRST,
    G_RECENT,
    G_VERSION,
    H_LOCK_KIND,
    H_MAGIC,
    H_SIZE,
    H_VERSION,
    HALF_HEAD,
    HALF_TAIL,
    L_CHECK,
    L_EXPIRES,
    L_LENGTH,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SENT,
    L_SEQ,
    L_SIZE,
    L_STATE,
    M_EXPIRES,
    M_GROUP,
    M_NEXT,
    M_PREV,
    M_QUEUE,
    M_QUEUE_GENERATION,
    M_QUEUE_NEXT,
    MAGIC,
    P_ATTACHED,
    P_DEAD_SINCE,
    P_OWNED,
    P_PID,
    Q_FIRST,
    Q_FIRST_MEMBER,
    Q_LAST,
    Q_MEMBERS,
    Q_NAME,
    Q_OWED,
    Q_OWNER,
    Q_OWNER_GENERATION,
    Q_PENDING,
    Q_QUICK,
    Q_RUNG,
    Q_SENDERS,
    Q_SENDING,
    Q_WAITERS,
    Q_WAITING,
    R_BUCKET,
    R_CHAIN,
    R_GENERATION,
    R_KEY,
    RECORD_WORDS,
    S_BIGGEST,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_ENDS,
    S_EPOCH,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_SENDING,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
    T_FREE,
    T_HIGH,
    T_RESERVED,
    T_USED,
    VERSION,
    W_GENERATION,
    W_PROCESS,
    W_PROCESS_GENERATION,
    WAITER_WORDS,
    WORD,
)
from asgi_ipc.store.store import Store
from asgi_ipc.store.verify import INTERRUPTED, verify

from ..unit.support import FOREVER, NOW, copy_of, make_store, owned, process, put, row_of, take
from .stepping import FULL_LENGTH


class Whole:
    """A store with some of everything, and where it is."""

    def __init__(self) -> None:
        self.store = store = make_store()
        self.groups = Groups(store)
        self.process = process(store, 0)
        for i in range(3):
            put(store, "work", b"body %d" % i)
            put(store, "x!1", b"to x %d" % i)
        put(store, "gone", b"gone")
        take(store, "gone")
        self.work, self.gone, self.own = row_of(store, "work"), row_of(store, "gone"), 0
        self.own = owned(store, "x!", self.process)
        for name in (b"work", b"x!1", b"x!2"):
            self.groups.add(b"room", name, NOW, FOREVER)
        self.groups.add(b"hall", b"work", NOW, FOREVER)
        self.groups.add(b"hall", b"other", NOW, FOREVER)
        self.groups.discard(b"hall", b"other")
        self.room = store.groups.find(b"room")
        self.member = store.members.find(b"work", self.room)
        self.first, self.last = store.words[self.work + Q_FIRST], store.words[self.work + Q_LAST]
        taken = store.add_waiter(self.process)
        assert taken is not None
        store.publish_waiter(*taken)
        self.waiter = store.layout.waiters + taken[0] * WAITER_WORDS
        store.park(self.work, taken[0])
        self.words, self.halves, self.doubles = store.words, store.halves, store.doubles


Damage = Callable[[Whole], Any]


def word(place: Callable[[Whole], int], value: Any) -> Damage:
    """Overwrite a word; `value` may be a function of the store, too."""

    def damage(whole: Whole) -> None:
        whole.words[place(whole)] = value(whole) if callable(value) else value

    return damage


def half(place: Callable[[Whole], int], value: Any) -> Damage:
    def damage(whole: Whole) -> None:
        whole.halves[place(whole)] = value(whole) if callable(value) else value

    return damage


def double(place: Callable[[Whole], int], value: float) -> Damage:
    def damage(whole: Whole) -> None:
        whole.doubles[place(whole)] = value

    return damage


def with_identity(whole: Whole, at: int, value: int) -> None:
    layout = whole.store.layout
    sizes = layout.message_memory, layout.group_memory, layout.max_message_size
    for place, right in enumerate((MAGIC, VERSION, layout.size)):
        whole.words[place] = right
    whole.words[7:11] = memoryview(bytearray(32)).cast("Q")
    whole.words[H_LOCK_KIND] = 1
    for place, right in enumerate(sizes, 8):
        whole.words[place] = right
    assert verify(whole.store, NOW) == []
    whole.words[at] = value


def byte(whole: Whole, at: int) -> None:
    whole.store.buffer[at] ^= 1


def table(name: str, at: int) -> Callable[[Whole], int]:
    return lambda whole: getattr(whole.store, name).state + at


def bucket_of(whole: Whole, wanted: int) -> int:
    """The bucket whose chain begins with a row."""
    queues = whole.store.queues
    for i in range(queues.high):
        if whole.words[queues.base + i * queues.row_words + R_BUCKET] == wanted:
            return queues.base + i * queues.row_words
    raise AssertionError("it is not the first of its chain")


def chained(whole: Whole) -> int:
    """A row that is the first of its chain."""
    for row in whole.store.queues.rows():
        try:
            bucket_of(whole, row)
        except AssertionError:
            continue
        return row
    raise AssertionError


FAR = 1 << 40
DAMAGE: dict[str, tuple[Damage, str]] = {
    "magic": (lambda w: with_identity(w, H_MAGIC, 7), "magic word"),
    "version": (lambda w: with_identity(w, H_VERSION, 99), "layout version"),
    "size": (lambda w: with_identity(w, H_SIZE, 4096), "size"),
    "kind of lock": (lambda w: with_identity(w, H_LOCK_KIND, 9), "kind of lock is 9"),
    "dirty word": (word(lambda w: S_DIRTY, 9), "dirty word"),
    "epoch": (word(lambda w: S_EPOCH, FAR), "epoch"),
    "numbers before the flush": (word(lambda w: S_SEQ_BASE, FAR), "before the flush"),
    "time of creation": (double(lambda w: S_SINCE, NOW + 9), "time of creation"),
    "time of creation is none": (double(lambda w: S_SINCE, float("nan")), "time of creation"),
    "next burial": (double(lambda w: S_BURY_AT, FAR), "next check for dead processes"),
    "head": (half(lambda w: HALF_HEAD, 2), "log: the tail is"),
    "tail": (half(lambda w: HALF_TAIL, lambda w: w.store.layout.log_end + 2), "log: the tail is"),
    "odd tail": (half(lambda w: HALF_TAIL, lambda w: w.store.layout.log + 1), "log: the tail is"),
    "mark": (word(lambda w: S_MARK, FAR), "log: the mark"),
    "size of a record": (half(lambda w: 2 * w.first + L_SIZE, 3), "no record begins"),
    "size nothing": (half(lambda w: 2 * w.first + L_SIZE, 0), "no record begins"),
    "size too large": (half(lambda w: 2 * w.first + L_SIZE, 400), "extends past the end"),
    "state": (half(lambda w: 2 * w.first + L_STATE, 7), "no record begins"),
    "number of a record": (word(lambda w: w.first + L_SEQ, FAR), "the newest is"),
    "number twice": (
        word(lambda w: w.first + L_SEQ, lambda w: w.words[w.last + L_SEQ]),
        "have the same number",
    ),
    "newest number": (word(lambda w: S_SEQ, 1), "the newest is 1"),
    "queue of a record": (half(lambda w: 2 * w.first + L_QUEUE, 4), "which is not a queue"),
    "queue of a record is another": (
        half(lambda w: 2 * w.first + L_QUEUE, lambda w: w.gone),
        "messages are counted",
    ),
    "length": (half(lambda w: 2 * w.first + L_LENGTH, 999), "words for"),
    "expiry": (
        double(lambda w: w.first + L_EXPIRES, float("nan")),
        "time of expiry that is not a number",
    ),
    "sent": (double(lambda w: w.first + L_SENT, NOW + 9), "was sent"),
    "checksum": (half(lambda w: 2 * w.first + L_CHECK, 1), "altered"),
    "body": (lambda w: byte(w, (w.first + RECORD_WORDS) * WORD), "altered"),
    "live words": (word(lambda w: S_LIVE, 0), "0 words are counted as live"),
    "biggest": (word(lambda w: S_BIGGEST, 2), "biggest record"),
    "limit": (word(lambda w: S_LIMIT, FAR), "the head may move"),
    "ends of an empty log": (
        lambda w: (
            recovery.flush(w.store, NOW),
            half(lambda w: HALF_HEAD, lambda w: w.store.layout.log + 2)(w),
            half(lambda w: 2 * w.store.layout.log + L_SIZE, 2)(w),
            half(lambda w: 2 * w.store.layout.log + L_STATE, 2)(w),
        ),
        "nothing is live",
    ),
    "rows": (word(table("queues", T_HIGH), FAR), "queues: "),
    "reserved": (word(table("members", T_RESERVED), 8), "members: "),
    "name": (lambda w: byte(w, (w.work + Q_NAME) * WORD), "the hash does not match the name"),
    "name not valid": (
        lambda w: w.store.buffer.__setitem__((w.work + Q_NAME) * WORD, 0xFF),
        "this is not a valid name",
    ),
    "length of a name": (
        word(lambda w: w.work + R_KEY, lambda w: w.words[w.work + R_KEY] | 0xFFFF),
        "a name cannot have",
    ),
    "hash": (
        word(lambda w: w.work + R_KEY, lambda w: w.words[w.work + R_KEY] ^ 1 << 40),
        "the hash does not match",
    ),
    "generation": (word(lambda w: w.work + R_GENERATION, FAR), "above the counter"),
    "generation twice": (
        word(lambda w: w.work + R_GENERATION, lambda w: w.words[w.gone + R_GENERATION]),
        "also belongs to",
    ),
    "counter": (word(lambda w: S_COUNTER, 3), "above the counter"),
    "rows in use": (word(table("groups", T_USED), 9), "9 rows are counted"),
    "bucket": (word(lambda w: bucket_of(w, chained(w)) + R_BUCKET, 0), "in no hash chain"),
    "bucket leads outside": (
        word(lambda w: bucket_of(w, chained(w)) + R_BUCKET, FAR),
        "which is not a row in use",
    ),
    "loop of a chain": (
        word(lambda w: chained(w) + R_CHAIN, chained),
        "in the hash chains twice",
    ),
    "free list": (word(table("members", T_FREE), 0), "are in the free list"),
    "free list leads to a row": (
        word(table("members", T_FREE), lambda w: w.member),
        "which is not a free row",
    ),
    "loop of the free list": (
        word(
            lambda w: w.words[w.store.members.state + T_FREE] + R_CHAIN,
            lambda w: w.words[w.store.members.state + T_FREE],
        ),
        "the free list forms a loop",
    ),
    "first message": (word(lambda w: w.work + Q_FIRST, lambda w: w.last), "the list leads to"),
    "last message": (word(lambda w: w.work + Q_LAST, lambda w: w.first), "the last record is"),
    "next message": (word(lambda w: w.first + L_NEXT, 0), "the list leads to 0"),
    "next message after the last": (word(lambda w: w.last + L_NEXT, FAR), "list continues to"),
    "loop of messages": (word(lambda w: w.last + L_NEXT, lambda w: w.first), "list continues to"),
    "message before": (word(lambda w: w.last + L_PREV, 0), "follows"),
    "messages counted": (word(lambda w: w.work + Q_PENDING, 9), "9 messages are counted"),
    "a message of an empty queue": (
        word(lambda w: w.gone + Q_FIRST, lambda w: w.first),
        "continues",
    ),
    "waiter without summary": (word(lambda w: w.work + Q_WAITING, 0), "missing in its summary"),
    "summary": (word(lambda w: w.work + Q_WAITING, FAR), "summary of the waiter set is"),
    "sender without summary": (
        word(lambda w: w.work + Q_SENDERS, 2),
        "of the set of senders is missing in its summary",
    ),
    "summary of senders": (
        word(lambda w: w.work + Q_SENDING, FAR),
        "summary of the set of senders is",
    ),
    "senders that no count shows": (
        word(lambda w: w.work + Q_SENDING, 1),
        "senders wait, and the count does not say so",
    ),
    "senders that wait for memory": (word(lambda w: S_SENDING, 1), "memory: senders wait, and"),
    "last ring": (double(lambda w: w.work + Q_RUNG, float("nan")), "last ring is nan"),
    "quick": (word(lambda w: w.work + Q_QUICK, 2), "whether receivers are quick is 2"),
    "owed": (word(lambda w: w.work + Q_OWED, FAR), "whether a ring is owed is"),
    "waiter id 0": (word(lambda w: w.work + Q_WAITERS, 3), "waiter id 0"),
    "group of a member": (word(lambda w: w.member + M_GROUP, 8), "its group 8 does not exist"),
    "queue of a member": (word(lambda w: w.member + M_QUEUE, 8), "its queue 8 does not exist"),
    "queue of a member is another": (
        word(lambda w: w.member + M_QUEUE, lambda w: w.gone),
        "it leads to the wrong queue",
    ),
    "generation of a member": (
        word(lambda w: w.member + M_QUEUE_GENERATION, FAR),
        "generation that it names",
    ),
    "end of a member": (
        double(lambda w: w.member + M_EXPIRES, float("nan")),
        "time of expiry is not a number",
    ),
    "first member": (word(lambda w: w.room + G_FIRST, 0), "is not in the list"),
    "first member is none": (word(lambda w: w.room + G_FIRST, FAR), "which is not in it"),
    "loop of members": (
        word(lambda w: w.member + M_NEXT, lambda w: w.words[w.room + G_FIRST]),
        "for the second time",
    ),
    "member before": (word(lambda w: w.words[w.room + G_FIRST] + M_PREV, FAR), "follows 0"),
    "members counted": (word(lambda w: w.room + G_COUNT, 1), "1 members are counted"),
    "version of a group": (word(lambda w: w.room + G_VERSION, 1 << 63), "the version cannot be"),
    "last changes of a group": (word(lambda w: w.room + G_RECENT, FAR), "a recent change names"),
    "first member of a queue": (word(lambda w: w.work + Q_FIRST_MEMBER, 0), "not in the list"),
    "next member of a queue": (
        word(lambda w: w.words[w.own + Q_FIRST_MEMBER] + M_QUEUE_NEXT, 0),
        "not in the list",
    ),
    "members of a queue": (word(lambda w: w.own + Q_MEMBERS, 0), "0 members are counted"),
    "pid": (word(lambda w: w.process + P_PID, 0), "this cannot be a process id"),
    "attached": (double(lambda w: w.process + P_ATTACHED, NOW + 9), "when it attached"),
    "death": (double(lambda w: w.process + P_DEAD_SINCE, NOW + 9), "time of its death"),
    "owner": (word(lambda w: w.own + Q_OWNER, 8), "its owner 8 is not an attached process"),
    "generation of an owner": (word(lambda w: w.own + Q_OWNER_GENERATION, 1), "not an attached"),
    "owner of a normal queue": (
        lambda w: owned(w.store, "work", w.process),
        "is not process-specific",
    ),
    "what is owned": (word(lambda w: w.process + P_OWNED, 0), "which it owns"),
    "what is not owned": (
        word(lambda w: w.process + P_OWNED, lambda w: w.gone),
        "which it does not own",
    ),
    "process of a waiter": (word(lambda w: w.waiter + W_PROCESS, 8), "is not an attached process"),
    "generation of its process": (
        word(lambda w: w.waiter + W_PROCESS_GENERATION, 1),
        "is not an attached process",
    ),
    "generation of a waiter": (word(lambda w: w.waiter + W_GENERATION, FAR), "above the counter"),
    "waiter of the dead": (
        double(lambda w: w.process + P_DEAD_SINCE, NOW - 1),
        "known to be dead",
    ),
    "waiter nobody": (
        word(lambda w: w.store.layout.waiters + W_GENERATION, 1),
        "waiter id 0: it stands for nobody",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str) -> None:
    damage, words = DAMAGE[kind]
    whole = Whole()
    assert verify(whole.store, NOW) == []
    damage(whole)
    before = bytes(whole.store.buffer)
    found = verify(whole.store, NOW)
    assert any(words in line for line in found), found
    assert bytes(whole.store.buffer) == before, "it only reads"


def test_an_empty_store_is_well() -> None:
    assert verify(make_store(), NOW) == []


def test_a_flushed_store_is_well() -> None:
    whole = Whole()
    recovery.flush(whole.store, NOW)
    assert verify(whole.store, NOW) == []


def test_a_move_that_was_not_finished_is_no_damage_while_the_store_is_dirty() -> None:
    whole = Whole()
    words, halves = whole.words, whole.halves
    head, size = halves[HALF_HEAD], halves[2 * whole.first + L_SIZE]
    copied = whole.store.buffer[whole.first * WORD : (whole.first + size) * WORD]
    whole.store.buffer[head * WORD : (head + size) * WORD] = copied
    words[S_DIRTY] = DIRTY
    halves[HALF_HEAD] = head + size
    assert verify(whole.store, NOW) == [INTERRUPTED]
    recovery.recover(whole.store, NOW)
    assert verify(whole.store, NOW) == []


@pytest.mark.parametrize("state", [DIRTY, FLUSHING])
def test_a_dirty_store_is_said_to_be_one(state: int) -> None:
    whole = Whole()
    whole.words[S_DIRTY] = state
    whole.words[S_LIVE] = whole.words[whole.work + Q_FIRST] = FAR  # derived: to be computed anew
    (found,) = verify(whole.store, NOW)
    assert found.startswith("dirty: a call was interrupted; the next call recovers the store")


def test_what_recovery_relies_on_is_looked_at_in_a_dirty_store() -> None:
    whole = Whole()
    whole.words[S_DIRTY] = DIRTY
    whole.words[S_ENDS] = 0
    assert len(verify(whole.store, NOW)) == 2


def test_garbage_does_not_hold_it_up() -> None:
    """Words of a region are replaced by random ones, or by the worst: those that look like
    references."""
    whole = Whole()
    chance = random.Random(1)
    layout = whole.store.layout
    references = [*whole.store.queues.rows(), *whole.store.members.rows(), whole.first, whole.last]
    regions = ((0, 512), (512, layout.queues.base), (layout.queues.base, layout.log_end))
    complaints = 0
    for _ in range(2000 if FULL_LENGTH else 200):
        store = copy_of(whole.store)
        low, high = chance.choice(regions)
        for _ in range(chance.choice((1, 10, 100, 1000))):
            at = chance.randrange(low, high)
            store.words[at] = chance.choice((chance.getrandbits(64), chance.choice(references)))
        found = verify(store, NOW)
        assert len(found) <= 100
        assert all(isinstance(line, str) and line for line in found)
        complaints += bool(found)
    assert complaints > 20


def test_it_takes_a_store_of_nothing_but_garbage() -> None:
    layout = make_store().layout
    buffer = bytearray(random.Random(2).randbytes(layout.size))
    assert verify(Store(buffer, layout), NOW)
