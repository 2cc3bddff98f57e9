"""Whoever is killed, wherever it is killed: the next holder of the lock finds every other message
in its queue, in order and once, and every membership. Most tests kill an operation at its first
write, at its second, and so on until it gets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc import recovery
from asgi_ipc.errors import CorruptStore
from asgi_ipc.groups import Groups
from asgi_ipc.layout import (
    CLEAN,
    DEAD_OWNER,
    DIRTY,
    FLUSHING,
    HALF_HEAD,
    L_QUEUE,
    L_SEQ,
    L_SIZE,
    Q_WAITING,
    R_BUCKET,
    R_CHAIN,
    S_BIGGEST,
    S_COUNTER,
    S_DIRTY,
    S_DROPS,
    S_ENDS,
    S_EPOCH,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_MOVES,
    S_RECOVERIES,
    S_SEQ,
    T_FREE,
    T_HIGH,
    T_USED,
)
from asgi_ipc.store import Store

from .support import (
    FOREVER,
    NOW,
    assert_whole,
    bodies,
    contents,
    copy_of,
    deaths,
    drain,
    examples,
    make_store,
    next_holder,
    owned,
    process,
    put,
    row_of,
    take,
    target,
    under_watch,
)

LATER = NOW + 100


def busy_store() -> Store:
    """Queues with messages and without, groups, owners, waiters, and things that end soon."""
    store = make_store(first_mark=8192)
    first, second = process(store, 0), process(store, 1)
    groups = Groups(store)
    for i in range(4):
        put(store, "work", b"work %d" % i)
        put(store, "brief", b"brief %d" % i, expires=LATER)
    owned(store, "specific.a!", first)
    owned(store, "specific.b!", second)
    row_of(store, "empty")
    for i in range(3):
        put(store, f"specific.a!socket{i}", b"to a %d" % i)
        groups.add(b"chat", b"specific.a!socket%d" % i, NOW, FOREVER)
        groups.add(b"chat", b"specific.b!socket%d" % i, NOW, LATER if i else FOREVER)
    groups.add(b"alone", b"work", NOW, FOREVER)
    store.park(row_of(store, "empty"), 5)
    take(store, "work")
    return store


def crowded_store() -> Store:
    """A log in which the next record has to wrap, and the one at the tail to be moved."""
    store = make_store(first_mark=4096)
    put(store, "stuck", b"stuck" * 20)
    put(store, "brief", b"brief" * 20, expires=LATER)
    while store.halves[HALF_HEAD] + 40 < store.words[S_MARK]:
        put(store, "work", b"w" * 100)
        if len(bodies(store, "work")) > 2:
            take(store, "work")
    return store


def single_message() -> Store:
    store = make_store()
    put(store, "only", b"last")
    return store


def tight_log() -> Store:
    store = make_store(first_mark=1024)
    put(store, "work", b"1" * 700)
    return store


def full_table() -> Store:
    """No row is left for another queue, but some can be reclaimed."""
    store = make_store(queues=8)
    for i in range(8):
        row_of(store, f"queue{i}")
    put(store, "queue3", b"stays")
    return store


def expired_at_the_limit() -> Store:
    """As much lives as ever can, and some of it is over at LATER."""
    store = make_store(first_mark=64 * 1024)
    while store.words[S_LIVE] + 150 < store.layout.max_live:
        put(store, "brief", b"b" * 1000, expires=LATER)
    put(store, "work", b"stays")
    return store


OPERATIONS: dict[str, tuple[Callable[[], Store], Callable[[Store], Any]]] = {
    "send": (busy_store, lambda store: put(store, "work", b"new")),
    "send to somebody who waits": (busy_store, lambda store: put(store, "empty", b"new")),
    "send to a new channel": (busy_store, lambda store: put(store, "new", b"new")),
    "send of local parts": (busy_store, lambda store: put(store, "specific.b!one", b"new")),
    "send at capacity": (busy_store, lambda store: put(store, "brief", b"new", LATER, capacity=4)),
    "send that moves a record": (crowded_store, lambda store: put(store, "work", b"n" * 500)),
    "send that grows the log": (tight_log, lambda store: put(store, "work", b"2" * 700)),
    "send to a new channel when rows have run out": (
        full_table,
        lambda store: put(store, "new", b"new"),
    ),
    "send when memory has run out": (
        expired_at_the_limit,
        lambda store: put(store, "work", b"n" * 1000, LATER),
    ),
    "receive": (busy_store, lambda store: take(store, "work")),
    "receive of the last": (single_message, lambda store: take(store, "only")),
    "receive past expired ones": (busy_store, lambda store: take(store, "brief", LATER)),
    "receive that parks": (busy_store, lambda store: store.take(target("new"), NOW, 7)),
    "pop": (busy_store, lambda store: store.pop(row_of(store, "specific.a!"))),
    "join": (busy_store, lambda store: Groups(store).add(b"chat", b"work", NOW, FOREVER)),
    "join of a new group": (
        busy_store,
        lambda store: Groups(store).add(b"new", b"unheard-of", NOW, FOREVER),
    ),
    "renewal": (busy_store, lambda store: Groups(store).add(b"chat", b"work", NOW, 2 * FOREVER)),
    "return of a lapsed member": (
        busy_store,
        lambda store: Groups(store).add(b"chat", b"specific.b!socket1", LATER, FOREVER),
    ),
    "leave": (busy_store, lambda store: Groups(store).discard(b"chat", b"specific.a!socket1")),
    "leave of the last": (busy_store, lambda store: Groups(store).discard(b"alone", b"work")),
    "own": (busy_store, lambda store: store.own(row_of(store, "empty"), store.process_row(0))),
    "attach": (busy_store, lambda store: process(store, 2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_is_killed_has_happened_or_not(name: str) -> None:
    make, operation = OPERATIONS[name]
    store = make()
    before = contents(store).living(LATER)
    done = copy_of(store)
    operation(done)
    assert_whole(done)
    after = contents(done).living(LATER)
    for left in deaths(store, operation):
        next_holder(left, LATER)
        assert_whole(left)
        assert contents(left).living(LATER) in (before, after)
