"""A channel as a receive names it, and the glances at its queue, on words of a test."""

from __future__ import annotations

import pytest

from asgi_ipc.aio.source import Source
from asgi_ipc.attachment.inbox import Inbox
from asgi_ipc.store.layout import R_GENERATION
from asgi_ipc.store.store import Store

from ..support import make_store, put, row_of, take

WAITER = 5


@pytest.fixture
def store() -> Store:
    return make_store()


def looked_up(store: Store, channel: str, inbox: Inbox | None = None) -> Source:
    source = Source(channel, inbox)
    source.target.point_to(row_of(store, source.queue), store.words)
    return source


@pytest.mark.parametrize(
    ("channel", "queue", "local"),
    [("c", "c", None), ("reply?1", "reply?1", None), ("p!", "p!", None), ("p!1", "p!", "1")],
)
def test_a_name_is_taken_apart_once(channel: str, queue: str, local: str | None) -> None:
    source = Source(channel, None)
    assert (source.queue, source.local, source.target.queue) == (queue, local, queue.encode())


def test_before_the_first_look_only_the_lock_can_tell(store: Store) -> None:
    assert Source("c", None).ready()
    assert not Source("c", None).awaited() and not Source("c", None).buffered()
    assert not looked_up(store, "c").ready()


def test_it_sees_what_comes_and_what_is_taken(store: Store) -> None:
    source = looked_up(store, "c")
    put(store, "c")
    assert source.ready()
    take(store, "c")
    assert not source.ready()


def test_it_sees_that_its_row_is_another_ones(store: Store) -> None:
    source = looked_up(store, "c")
    store.words[source.target.row + R_GENERATION] += 1
    assert source.ready()


def test_it_sees_who_waits_but_not_at_a_process_specific_queue(store: Store) -> None:
    for channel in ("c", "p!"):
        store.park(row_of(store, channel), WAITER)
    assert looked_up(store, "c").awaited()
    assert not looked_up(store, "p!", Inbox("p!", store)).awaited()


def test_what_is_buffered_is_seen_by_those_it_is_for(store: Store) -> None:
    inbox = Inbox("p!", store)
    one, two, everyone = (looked_up(store, f"p!{local}", inbox) for local in ("1", "2", ""))
    assert not everyone.buffered()
    put(store, "p!1")
    inbox.drain(row_of(store, "p!"), lambda local: 100, 1000.0)
    assert one.buffered() and everyone.buffered() and not two.buffered()
    assert not one.ready()  # it has left the queue
