"""The front of a queue, read without the lock."""

from __future__ import annotations

import pytest

from asgi_ipc.store import front as front_module
from asgi_ipc.store.front import Front, read_front
from asgi_ipc.store.layout import L_NEXT, L_QUEUE, Q_FIRST, QUEUE_WORDS
from asgi_ipc.store.store import Store

from ..support import FOREVER, LATER, NOW, make_store, put, row_of, take


def front_of(store: Store, words: memoryview, row: int) -> Front:
    """What a reader of a copy gets: `words` are the row as it was."""
    return read_front(
        store.layout, lambda offset, size: store.buffer[offset : offset + size], row, words, LATER
    )


def copied(store: Store, row: int) -> memoryview:
    return memoryview(bytes(store.words[row : row + QUEUE_WORDS])).cast("Q")


def test_the_oldest_message_and_how_many_wait() -> None:
    store = make_store()
    put(store, "c", now=NOW)
    put(store, "c", now=NOW + 5)
    assert store.front(row_of(store, "c"), NOW + 20) == Front(2, NOW)
    assert store.front(row_of(store, "c"), NOW + 20).age(NOW + 20) == 20
    take(store, "c")
    assert store.front(row_of(store, "c"), NOW + 20) == Front(1, NOW + 5)


def test_an_empty_queue_has_no_oldest_message() -> None:
    store = make_store()
    found = store.front(row_of(store, "c"), NOW)
    assert found == Front(0, 0.0) and found.age(NOW) == 0.0


def test_a_message_from_a_moment_later_is_not_of_negative_age() -> None:
    """A reader may have looked at its clock before the message was sent."""
    assert Front(1, NOW + 1).age(NOW) == 0.0


def test_expired_messages_at_the_front_are_skipped() -> None:
    store = make_store()
    for number in range(3):
        put(store, "c", now=NOW + number, expires=LATER)
    put(store, "c", now=NOW + 50)
    put(store, "c", now=NOW + 60, expires=LATER)  # behind the front: nobody looks that far
    assert front_of(store, copied(store, row_of(store, "c")), row_of(store, "c")) == (2, NOW + 50)


def test_all_are_expired() -> None:
    store = make_store()
    put(store, "c", expires=LATER)
    assert store.front(row_of(store, "c"), LATER) == Front(0, 0.0)


def test_a_message_that_is_taken_while_it_is_read() -> None:
    store = make_store()
    put(store, "c")
    put(store, "c")
    row = row_of(store, "c")
    before = copied(store, row)
    take(store, "c")
    assert front_of(store, before, row) == (2, 0.0)


def test_a_record_that_now_belongs_to_another_queue() -> None:
    store = make_store()
    put(store, "c")
    row = row_of(store, "c")
    store.halves[2 * store.words[row + Q_FIRST] + L_QUEUE] = row_of(store, "other")
    assert front_of(store, copied(store, row), row) == (1, 0.0)


@pytest.mark.parametrize("reference", ["before the log", "after the log", "its last word"])
def test_a_reference_that_leads_out_of_the_log(reference: str) -> None:
    store = make_store()
    put(store, "c", expires=FOREVER)
    row = row_of(store, "c")
    layout = store.layout
    store.words[row + Q_FIRST] = {
        "before the log": layout.log - 1,
        "after the log": 1 << 60,
        "its last word": layout.log_end - 1,
    }[reference]
    assert store.front(row, NOW) == Front(1, 0.0)


def test_links_that_lead_round_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "_EXPIRED_AT_ONCE", 10)
    store = make_store()
    for _ in range(30):
        put(store, "c", expires=LATER)
    row = row_of(store, "c")
    first = store.words[row + Q_FIRST]
    store.words[first + L_NEXT] = first
    assert store.front(row, LATER) == Front(20, 0.0)
