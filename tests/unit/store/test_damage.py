"""Whatever bytes are in memory, an operation ends, delivers nothing that was not sent, fails only
with an error of this package, and writes nothing outside the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_ipc.errors import IPCError
from asgi_ipc.segment.section import Waits, make_section
from asgi_ipc.store import layout, recovery
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import Q_FIRST, RECORD_WORDS, S_DIRTY, S_TABLES, TABLE_WORDS, WORD
from asgi_ipc.store.plans import Planner
from asgi_ipc.store.store import Store

from ..support import (
    FOREVER,
    LATER,
    NOW,
    busy_store,
    contents,
    copy_of,
    put,
    row_of,
    take,
    target,
    under_watch,
)

IDENTITY = S_DIRTY * WORD  # bytes at the start that no operation writes to: header and lock

SENT = {message.body for waiting in contents(busy_store()).messages.values() for message in waiting}


def pop(store: Store) -> bytes | None:
    row = row_of(store, "specific.a!")
    message = store.peek(row)
    if message is None:
        return None
    store.pop(row)
    return message.body


OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "send": lambda store: put(store, "work", b"new"),
    "send of local parts": lambda store: put(store, "specific.a!socket0", b"new"),
    "send at capacity": lambda store: put(store, "brief", b"new", LATER, capacity=4),
    "receive": lambda store: take(store, "work"),
    "receive past expired ones": lambda store: take(store, "brief", LATER),
    "pop": pop,
    "park": lambda store: store.take(target("new"), NOW, 7),
    "own": lambda store: store.own(row_of(store, "empty"), store.process_row(1)),
    "bury": lambda store: store.bury(store.process_row(0), NOW, 0.0),
    "sweep": lambda store: store.sweep(LATER + 100),
    "sweep of groups": lambda store: Groups(store).sweep(LATER, 100),
    "join": lambda store: Groups(store).add(b"chat", b"work", NOW, FOREVER),
    "leave": lambda store: Groups(store).discard(b"chat", b"specific.a!socket1"),
    "members": lambda store: Groups(store).channels(b"chat", NOW),
    "plan": lambda store: Planner(Groups(store), len).plan(b"chat", NOW),
    "recover": lambda store: recovery.recover(store, NOW),
    "flush": lambda store: recovery.flush(store, NOW),
}


def fields(prefix: str) -> Iterator[int]:
    """The constants of the memory map with a prefix, except names."""
    for name, value in vars(layout).items():
        if name.startswith(prefix) and isinstance(value, int) and not name.endswith("_NAME"):
            yield value


def places(store: Store) -> dict[int, str]:
    """One word of every kind, with what it is."""
    work, mine = row_of(store, "work"), row_of(store, "specific.a!")
    group = next(store.groups.rows())
    member = list(store.members.rows())[1]
    found = {}
    for what, base, prefix in (
        ("queue", work, "Q_"),
        ("owned queue", mine, "Q_"),
        ("queue", work, "R_"),
        ("group", group, "G_"),
        ("group", group, "R_"),
        ("member", member, "M_"),
        ("member", member, "R_"),
        ("process", store.process_row(0), "P_"),
        ("queues", S_TABLES, "T_"),
        ("groups", S_TABLES + TABLE_WORDS, "T_"),
        ("members", S_TABLES + 2 * TABLE_WORDS, "T_"),
        ("state", 0, "S_"),
    ):
        found.update({base + field: f"{what} {prefix}{field}" for field in fields(prefix)})
    for what, row in (("record", work), ("record with local parts", mine)):
        for i in range(RECORD_WORDS):
            found[store.words[row + Q_FIRST] + i] = f"{what} {i}"
    return found


def wrong_values(store: Store) -> list[int]:
    row = row_of(store, "work")
    record = store.words[row + Q_FIRST]
    small = [0, 1, 5, 33]
    references = [row, record, next(store.groups.rows()), next(store.members.rows())]
    large = [2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
    halves = [record << 32 | record, store.layout.log_end << 32]
    return small + references + large + halves


def damaged() -> Iterator[tuple[str, Store]]:
    """A store with one wrong word, for every kind of word and many wrong values."""
    whole = busy_store()
    for at, what in places(whole).items():
        for value in wrong_values(whole):
            if whole.words[at] != value:
                store = copy_of(whole)
                store.words[at] = value
                yield f"{what} = {value:#x}", store


class NoLock:
    """Replaces the lock of a section that nobody else enters."""

    handle = None

    def trylock(self, handle: None) -> int:
        return 0

    unlock = consistent = trylock

    def holder(self) -> int:
        return 0


def in_section(store: Store, operation: Callable[[Store], Any]) -> Any:
    section = make_section(NoLock(), store.words, lambda: None, Waits(1.0, 1.0))
    return section(operation, store)


def attempts(name: str) -> Iterator[tuple[str, Store, Any]]:
    """Run an operation on every damaged store: what was wrong, the store after it, and the result
    or error."""
    tried = 0
    for what, store in damaged():
        watched, _ = under_watch(store)
        try:
            answer = in_section(watched, OPERATIONS[name])
        except Exception as error:
            answer = error
        tried += 1
        yield what, watched, answer
    assert tried > 1000


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors_are_ours_and_nothing_is_written_over_header_and_lock(name: str) -> None:
    expected = bytes(busy_store().buffer[:IDENTITY])
    wrong, overwritten = {}, []
    for what, store, answer in attempts(name):
        if isinstance(answer, Exception) and not isinstance(answer, IPCError):
            wrong[what] = repr(answer)
        if store.buffer[:IDENTITY] != expected:
            overwritten.append(what)
    assert wrong == {}
    assert overwritten == []


@pytest.mark.parametrize("name", ["receive", "receive past expired ones", "pop"])
def test_nothing_is_delivered_that_was_not_sent(name: str) -> None:
    answers = [answer for _, _, answer in attempts(name) if not isinstance(answer, Exception)]
    delivered = {bytes(answer) for answer in answers if answer is not None}
    assert answers and delivered <= SENT
