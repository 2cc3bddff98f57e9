"""What an operation leaves if it is killed between any two of its writes, or in the middle of one
that is wider than a word: a machine word is written whole, but a copy of several words is not.

The tests record the writes of an operation on a store in plain memory, each with the instruction
that made it. Every prefix of that sequence is a death, and so is every prefix that ends in the
first few words of a wide write, or in the zeros that `pack_into` first writes to its range. Where
an operation goes through the same line many times, a short run takes some of these deaths.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import pytest

import asgi_ipc.store.queues
from asgi_ipc.store import recovery
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import (
    CLEAN,
    DIRTY,
    FLUSHING,
    HALF_HEAD,
    Q_OWED,
    Q_QUICK,
    Q_RUNG,
    Q_SENDING,
    RECORD,
    S_DIRTY,
    S_MARK,
    S_MOVES,
    S_SENDING,
    WORD,
)
from asgi_ipc.store.store import Store
from asgi_ipc.store.verify import INTERRUPTED, verify
from asgi_ipc.store.wakes import WOKEN

from ..proofs import Record
from ..unit.support import (
    FOREVER,
    KIB,
    NOW,
    Contents,
    contents,
    copy_of,
    make_store,
    owned,
    process,
    put,
    row_of,
    take,
    target,
)
from .scenarios import ruin, up_to_the_mark
from .stepping import FULL_LENGTH, Stepper, place_of

LATER = NOW + 100
# States after the same line of code, of which a short run takes every one; and a tenth of those
# that come later, others in each run.
SAME = 5
Operation = Callable[[Store], Any]


class Write(NamedTuple):
    """What one instruction has changed. `zeroed` is the range that it first set to zero."""

    where: str
    offset: int
    data: bytes
    zeroed: tuple[int, int] | None


class Case(NamedTuple):
    made: Callable[[], Store]
    operation: Operation
    whole: bool = True  # either all of it has happened, or nothing
    repeated: bool = False  # it can be repeated after a death, with the same result


class Packing:
    """Replaces a Struct, and notes where it packs."""

    def __init__(self, packed: struct.Struct, notes: list[tuple[int, int]]) -> None:
        self._notes = notes
        self._packed = packed
        self.unpack_from = packed.unpack_from

    def pack_into(self, buffer: Any, offset: int, *values: Any) -> None:
        self._notes.append((offset, self._packed.size))
        self._packed.pack_into(buffer, offset, *values)


def writes_of(store: Store, operation: Operation) -> list[Write]:
    """What `operation` does to the memory, one entry for each instruction that changes any."""
    memory = store.buffer
    known = bytearray(memory)
    writes: list[Write] = []
    notes: list[tuple[int, int]] = []
    place = "the call"

    def look(frame: FrameType | None, n: int) -> None:
        nonlocal place
        if memory != known:
            first, end = differing(known, memory)
            data = bytes(memory[first:end])
            known[first:end] = data
            writes.append(Write(place, first, data, notes.pop() if notes else None))
        notes.clear()
        if frame is not None:
            place = place_of(frame)

    stepper = Stepper(look)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asgi_ipc.store.queues, "_pack_record", Packing(RECORD, notes).pack_into)
        stepper.run(lambda: operation(store))
    look(None, 0)
    assert stepper.taken > 20, "the instructions were not counted"
    return writes


def differing(old: bytearray, new: bytearray, step: int = 4 * KIB) -> tuple[int, int]:
    """The range in bytes from the first word that differs to the last."""
    chunks = [at for at in range(0, len(new), step) if old[at : at + step] != new[at : at + step]]
    words = [
        at
        for chunk in (chunks[0], chunks[-1])
        for at in range(chunk, min(chunk + step, len(new)), WORD)
        if old[at : at + WORD] != new[at : at + WORD]
    ]
    return words[0], words[-1] + WORD


def images(before: bytes, writes: list[Write]) -> Iterator[tuple[str, bytearray]]:
    """The memory that each possible death leaves, and where the death was."""
    memory = bytearray(before)
    yield "before the first write", memory
    for write in writes:
        if write.zeroed is not None:
            offset, length = write.zeroed
            torn = bytearray(memory)
            torn[offset : offset + length] = bytes(length)
            yield f"{write.where}: packed zeros", torn
        words = len(write.data) // WORD
        every = 1 if FULL_LENGTH or words <= 64 else words // 64
        for done in range(1, words, every):
            torn = bytearray(memory)
            torn[write.offset : write.offset + done * WORD] = write.data[: done * WORD]
            yield f"{write.where}: {done} of {words} words", torn
        memory[write.offset : write.offset + len(write.data)] = write.data
        yield f"after {write.where}", memory


def check(image: bytearray, layout: Any, before: Contents, after: Contents, case: Case) -> str:
    """What is wrong with what a death has left, after it was recovered; "" for nothing."""
    left = Store(bytearray(image), layout)
    state = left.words[S_DIRTY]
    found = verify(left, LATER)
    if not all(line.startswith(INTERRUPTED) for line in found):
        return f"primary words are wrong: {found}"
    if state != CLEAN:
        recovery.recover(left, LATER)
    wrong = amiss(left, before, after, case.whole)
    if wrong:
        return wrong
    # Recovery has the same result a second time, or if it was not needed.
    if state != FLUSHING:
        for _ in range(2):
            left.words[S_DIRTY] = DIRTY
            recovery.recover(left, LATER)
            if wrong := amiss(left, before, after, case.whole):
                return f"recovered again: {wrong}"
    if case.repeated:
        case.operation(left)
        if wrong := amiss(left, after, after, True):
            return f"done again: {wrong}"
    body = bytes(layout.max_message_size)
    if put(left, "largest", body, LATER) < 0 or take(left, "largest", LATER) != body:
        return "the largest message does not fit"
    return "; ".join(verify(left, LATER))


def amiss(store: Store, before: Contents, after: Contents, whole: bool) -> str:
    found = verify(store, LATER)
    if found:
        return "; ".join(found)
    there = contents(store).living(LATER)
    if whole:
        return "" if there in (before, after) else f"half done: {there}"
    for queue in {*there.messages, *before.messages, *after.messages}:
        old, new = before.messages.get(queue, []), after.messages.get(queue, [])
        now = there.messages.get(queue, [])
        left = old[len(old) - len(now) :] == now and old[len(old) - len(new) :] == new
        if now not in (old, new) and not (left and len(now) >= len(new)):
            return f"{queue!r}: {now}"
    for group in {*there.groups, *before.groups, *after.groups}:
        old_members, new_members = before.groups.get(group, {}), after.groups.get(group, {})
        for channel, ends in there.groups.get(group, {}).items():
            if ends not in (old_members.get(channel), new_members.get(channel)):
                return f"{channel!r} is in {group!r} until {ends}"
        for channel in old_members.keys() & new_members.keys():
            if channel not in there.groups.get(group, {}):
                return f"{channel!r} is not in {group!r}"
    for queue in {*there.owners, *before.owners, *after.owners}:
        if there.owners.get(queue) not in (before.owners.get(queue), after.owners.get(queue), None):
            return f"{queue!r} belongs to {there.owners[queue]}"
    return ""


# -- the operations -------------------------------------------------------------------------------


def store_with(**sizes: Any) -> Store:
    """A store with a little of everything."""
    store = make_store(**{"queues": 40, "group_memory": 4000, **sizes})
    groups = Groups(store)
    owner, other = process(store, 0), process(store, 1)
    for i in range(3):
        put(store, "work", b"work %d" % i)
        put(store, f"x!{i % 2}", b"to x %d" % i)
        put(store, "late", b"late %d" % i, expires=NOW + 50)
        put(store, "y!1", b"to y %d" % i)
    owned(store, "x!", owner)
    owned(store, "y!", other)
    owned(store, "z!", other)
    for channel in (b"work", b"x!1", b"x!2", b"y!1"):
        groups.add(b"room", channel, NOW, FOREVER)
    groups.add(b"hall", b"y!1", NOW, FOREVER)
    groups.add(b"hall", b"late", NOW, NOW + 50)
    taken = store.add_waiter(owner)
    assert taken is not None
    store.publish_waiter(*taken)
    store.park(row_of(store, "work"), taken[0])
    return store


def full() -> Store:
    return store_with(message_memory=64 * KIB)


def wrapping(stuck: bool) -> Store:
    store = make_store(queues=40, group_memory=4000)
    if stuck:
        put(store, "work", b"stuck")
        put(store, "x!1", b"stuck, too")
    sizes = bytes(384), b"other", bytes(760)
    up_to_the_mark(store, lambda call, *args: call(*args), stuck, *sizes, NOW)
    put(store, "other", b"other")
    return store


def with_hints(rung: float, quick: int, owed: int) -> Store:
    """As `store_with`, but more wait for messages, and the hints say what need not be so."""
    store = store_with()
    for name in ("work", "late", "x!", "y!"):
        row = row_of(store, name)
        for waiter_id in (70, 700):
            store.park(row, waiter_id)
        store.doubles[row + Q_RUNG] = rung
        store.words[row + Q_QUICK], store.words[row + Q_OWED] = quick, owed
    return store


HINTS = {
    "rung and quick": (LATER, 1, 0),
    "rung, quick and owed": (LATER, 1, 1),
    "rung long ago, quick and owed": (NOW, 1, 1),
    "only owed": (0.0, 0, 1),
}


def take_when_rung(store: Store) -> None:
    mine = target("work")
    mine.taken = LATER
    row = store.bind(mine, LATER)
    store.unpark(row, 70)
    assert store.take(mine, LATER, 70 + WOKEN) is not None


def look_when_rung(store: Store) -> None:
    mine = target("gone")
    store.bind(mine, LATER)
    mine.taken = LATER
    assert store.take(mine, LATER, 70 + WOKEN) is None


def in_disorder() -> Store:
    store = store_with()
    ruin(store)
    return store


def unburied() -> Store:
    store = store_with()
    store.bury(store.process_row(1), NOW, 1.0)
    return store


def with_expired_members() -> Store:
    store = store_with(group_memory=0, queues=120)
    groups = Groups(store)
    while store.members.used < store.members.max_rows:
        groups.add(b"full", b"m%d" % store.members.used, NOW, NOW + 1)
    return store


def broadcast(store: Store) -> None:
    for name in ("work", "late", "new", "x!1"):
        put(store, name, b"broadcast", LATER)


def pop(store: Store) -> None:
    row = row_of(store, "x!")
    assert store.peek(row) is not None
    store.pop(row)


def bury(store: Store) -> None:
    while not store.bury(store.process_row(1), LATER, 0.0):
        pass


def sweep(store: Store) -> None:
    Groups(store).sweep(LATER, 64)
    store.sweep(LATER)
    store.reclaim(LATER, 0.0, 64)


def waiter(store: Store) -> None:
    taken = store.add_waiter(store.process_row(1))
    assert taken is not None
    store.publish_waiter(*taken)
    row = row_of(store, "work")
    store.park(row, taken[0])
    store.pick(row)
    store.unpark(row, taken[0])
    store.remove_waiter(*taken)


def crowded() -> Store:
    """The queue is full, and so is memory; senders wait for both."""
    store = store_with()
    for place in (row_of(store, "work") + Q_SENDING, S_SENDING):
        for waiter_id in (3, 70):
            store.park_sender(place, waiter_id)
    return store


def wait_for_room(store: Store) -> None:
    store.put_or_park(target("work", 3), b"mine", LATER, 5)


def with_room() -> Store:
    store = crowded()
    take(store, "work")
    return store


def answer(store: Store) -> None:
    """What a sender does that was rung, and one that was not and gives up."""
    place = row_of(store, "work") + Q_SENDING
    store.put_or_park(target("work", 3), b"mine", LATER, 3, place)
    store.leave_room(target("work", 3), 70, place)


CASES: dict[str, Case] = {
    "put or park": Case(store_with, wait_for_room),
    "take where senders wait": Case(crowded, lambda store: take(store, "work", LATER)),
    "senders that answer": Case(with_room, answer),
    "put": Case(store_with, lambda store: put(store, "work", b"mine" * 40, LATER)),
    "put to a process": Case(store_with, lambda store: put(store, "x!abc", b"mine" * 9, LATER)),
    "put to a new queue": Case(store_with, lambda store: put(store, "new", b"mine", LATER)),
    "put at capacity": Case(
        store_with, lambda store: put(store, "work", b"mine", LATER, capacity=3)
    ),
    "put past expired ones": Case(
        store_with, lambda store: put(store, "late", b"mine", LATER, capacity=3)
    ),
    "put where the ring wraps": Case(
        lambda: wrapping(False), lambda store: put(store, "work", bytes(760), LATER)
    ),
    "put with relocation": Case(
        lambda: wrapping(True), lambda store: put(store, "work", bytes(760), LATER)
    ),
    "put that reserves memory": Case(
        store_with, lambda store: put(store, "work", bytes(KIB - 100) + b"\1" * 100, LATER)
    ),
    "take": Case(store_with, lambda store: take(store, "work", LATER)),
    "take past expired ones": Case(
        store_with, lambda store: take(store, "late", LATER), whole=False
    ),
    "pop": Case(store_with, pop),
    "own": Case(store_with, lambda store: owned(store, "new!", store.process_row(0))),
    "own what was a dead process's": Case(
        unburied, lambda store: owned(store, "y!", store.process_row(0)), whole=False
    ),
    "attach": Case(store_with, lambda store: process(store, 2, LATER)),
    "leave": Case(
        store_with, lambda store: store.leave(store.process_row(1), LATER), repeated=True
    ),
    "bury": Case(store_with, bury, whole=False, repeated=True),
    "bury what was known to be dead": Case(unburied, bury, whole=False, repeated=True),
    "join a new group": Case(
        store_with, lambda store: Groups(store).add(b"new", b"n!1", LATER, FOREVER)
    ),
    "join": Case(store_with, lambda store: Groups(store).add(b"room", b"n!1", LATER, FOREVER)),
    "join again": Case(
        store_with, lambda store: Groups(store).add(b"room", b"work", LATER, FOREVER + 1)
    ),
    "join after the end": Case(
        store_with, lambda store: Groups(store).add(b"hall", b"late", LATER, FOREVER)
    ),
    "join when all is full": Case(
        with_expired_members,
        lambda store: Groups(store).add(b"full", b"n!1", LATER, FOREVER),
        whole=False,
    ),
    "discard": Case(store_with, lambda store: Groups(store).discard(b"room", b"x!1")),
    "discard the last": Case(
        store_with, lambda store: Groups(store).discard(b"hall", b"y!1"), whole=False, repeated=True
    ),
    "broadcast": Case(store_with, broadcast, whole=False),
    "sweep": Case(store_with, sweep, whole=False, repeated=True),
    "waiter": Case(store_with, waiter),
    "flush": Case(store_with, lambda store: recovery.flush(store, LATER), repeated=True),
    "recovery": Case(in_disorder, lambda store: recovery.recover(store, LATER)),
}


for hints, values in HINTS.items():
    made = partial(with_hints, *values)
    CASES[f"put, {hints}"] = Case(made, lambda store: put(store, "work", b"mine", LATER))
    CASES[f"take when rung, {hints}"] = Case(made, take_when_rung)
CASES["take, rung long ago"] = Case(
    partial(with_hints, NOW, 1, 1), lambda store: take(store, "work", LATER)
)
CASES["look when rung"] = Case(partial(with_hints, LATER, 1, 1), look_when_rung)


@pytest.mark.parametrize("name", CASES)
def test_whatever_a_death_leaves_of_the_writes_is_made_whole(
    name: str, record_property: Record
) -> None:
    case = CASES[name]
    store = case.made()
    image = bytes(store.buffer)
    settled = copy_of(store)
    if settled.words[S_DIRTY] != CLEAN:
        recovery.recover(settled, LATER)
    before = contents(settled).living(LATER)
    writes = writes_of(store, case.operation)
    assert verify(store, LATER) == []
    after = contents(store).living(LATER)
    assert len(writes) >= 2, "the operation writes too little to die in the middle of it"

    failures = []
    count = 0
    times: Counter[str] = Counter()
    for where, left in images(image, writes):
        times[where] += 1
        if times[where] > SAME and not FULL_LENGTH and random.randrange(10):
            continue
        count += 1
        try:
            wrong = check(left, store.layout, before, after, case)
        except Exception as error:
            wrong = repr(error)
        if wrong:
            failures.append(f"{where}: {wrong}")
    assert sum(times.values()) > len(writes)
    record_property("states of the memory", count)
    assert not failures, f"{len(failures)} of {count}:\n" + "\n".join(failures[:20])


@pytest.mark.parametrize("stuck", [False, True])
def test_the_ring_does_wrap_and_move(stuck: bool) -> None:
    store = wrapping(stuck)
    head, moves, mark = store.halves[HALF_HEAD], store.words[S_MOVES], store.words[S_MARK]
    put(store, "work", bytes(760), LATER)
    assert store.words[S_MARK] == mark
    if stuck:
        assert store.words[S_MOVES] > moves
    else:
        assert store.halves[HALF_HEAD] < head


def test_wide_writes_are_torn() -> None:
    store = store_with()
    image = bytes(store.buffer)
    writes = writes_of(store, lambda store: put(store, "work", b"mine" * 40, LATER))
    places = [where for where, _ in images(image, writes)]
    assert sum("words" in where for where in places) >= 20
    assert sum("packed zeros" in where for where in places) == 1
