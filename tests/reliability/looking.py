"""Looking at what a victim has left: what must be true of it, and cleaning it up."""

from __future__ import annotations

import time
from itertools import compress

from asgi_ipc.store.layout import (
    CLEAN,
    MAX_PROCESSES,
    P_GENERATION,
    PROCESS_WORDS,
    S_DIRTY,
    W_GENERATION,
    W_PROCESS_GENERATION,
    WAITER_WORDS,
)
from asgi_ipc.store.store import Store
from asgi_ipc.store.verify import INTERRUPTED, verify

from .clients import Blocking


def bury_all(survivor: Blocking) -> None:
    """See to all that is left of dead processes, as if `expiry` were over."""
    session = survivor.session
    store, attachment, now = session.store, session.attachment, time.monotonic()
    for index in processes_in_use(store):
        row = store.process_row(index)
        if not attachment.is_alive(row):
            while not session.section(store.bury, row, now, 0.0):
                pass


def generations(store: Store, base: int, width: int, word: int, count: int = 1024) -> list[int]:
    """Which rows of a fixed region are in use."""
    return [*compress(range(count), store.words[base + word : base + count * width : width])]


def processes_in_use(store: Store) -> list[int]:
    return generations(store, store.layout.processes, PROCESS_WORDS, P_GENERATION, MAX_PROCESSES)


def waiters_in_use(store: Store) -> list[int]:
    base = store.layout.waiters
    return sorted(
        {
            *generations(store, base, WAITER_WORDS, W_GENERATION),
            *generations(store, base, WAITER_WORDS, W_PROCESS_GENERATION),
        }
    )


def assert_whole(survivor: Blocking) -> None:
    """A call later nothing is wrong."""
    session = survivor.session
    found = session.section(verify, session.store, time.monotonic())
    assert found == [], found


def assert_as_before_the_call(survivor: Blocking) -> None:
    """What a death or an exception has left, before anybody looks: nothing that was not allowed."""
    session = survivor.session
    assert session.attachment.lock.holder() == 0, "the lock is held"
    found = verify(session.store, time.monotonic())
    assert all(line.startswith(INTERRUPTED) for line in found), found
    assert bool(found) == (session.store.words[S_DIRTY] != CLEAN), found


def assert_the_largest_fits(survivor: Blocking) -> None:
    body = b"x" * (survivor.core.max_message_size - 100)
    survivor.send("largest", {"id": body})
    assert survivor.drain("largest") == [("largest", body)], "the largest message did not come"


def assert_nobody_else_is_entered(survivor: Blocking) -> None:
    """Neither as a process nor as somebody who waits."""
    store = survivor.store
    index = store.process_rows().index(survivor.session.attachment.process)
    assert processes_in_use(store) == [index], "the dead"
    assert waiters_in_use(store) == [], "the doorbell of somebody dead is still rung"
