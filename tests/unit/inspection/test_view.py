"""A segment that is open for reading: what a view copies, and what it makes of odd segments."""

from __future__ import annotations

import os
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.errors import CorruptStore, NoSuchLayer
from asgi_ipc.inspection.view import View, attached_to, name_in
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import (
    NAME_WORDS,
    PAGE,
    Q_NAME,
    QUEUE_WORDS,
    R_GENERATION,
    R_KEY,
    S_SEQ,
    S_TABLES,
    T_HIGH,
    T_RESERVED,
    WORD,
)

from .inspected import Inspected


@pytest.fixture
def inspected(prefix: str) -> Inspected:
    return Inspected(prefix)


def header_of(view: View) -> memoryview[int]:
    return view.words(0, PAGE // WORD)


# -- bytes ----------------------------------------------------------------------------------------


@pytest.fixture(params=["shared memory", "memory of this process"])
def view(request: pytest.FixtureRequest, prefix: str) -> Any:
    """Both kinds of memory that are read: through a descriptor, and directly."""
    if request.param != "shared memory":
        inspected = Inspected(prefix)
        inspected.layer.send("c", {})
        yield inspected.view
        return
    layer = IPCChannelLayer(prefix)
    layer.send("c", {})
    yield View(prefix)


def test_words_are_copies(view: View, prefix: str) -> None:
    words = header_of(view)
    assert words[S_SEQ] == 1
    with pytest.raises(TypeError):
        words[S_SEQ] = 2


def test_what_is_read_ends_with_the_segment(view: View) -> None:
    end = view.layout.size
    assert len(view.read(end - 10, 100)) == 10
    with pytest.raises(CorruptStore, match="cut short"):
        view.words(end // WORD - 1, 2)
    target = memoryview(bytearray(b"x" * 20))
    view.read_into(target, end - 10)
    assert bytes(target[:10]) == view.read(end - 10, 10) and bytes(target[10:]) == b"x" * 10


def test_memory_that_the_segment_has_reserved(view: View) -> None:
    assert view.layout.fixed_bytes < view.reserved() < view.size


def test_this_process_is_attached(view: View) -> None:
    assert list(view.attached().values()) == [os.getpid()]


# -- the whole segment ----------------------------------------------------------------------------


def test_a_layer_with_its_options_joins_the_segment(prefix: str) -> None:
    given: dict[str, Any] = {
        "message_memory": 1 << 20,
        "group_memory": 100_000,
        "max_message_size": 1 << 16,
        "mode": 0o660,
        "lock": "file",
    }
    layer = IPCChannelLayer(prefix, **given)
    layer.send("c", {"n": 1})
    assert View(prefix).options() == {**given, "group": os.getegid()}
    layer.close()
    assert IPCChannelLayer(prefix, **View(prefix).options()).receive(["c"]) == ("c", {"n": 1})


def test_a_segment_that_is_removed_or_replaced_has_vanished(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("c", {})
    view = View(prefix)
    assert not view.vanished()
    segment.destroy(prefix)
    assert view.vanished()
    other = IPCChannelLayer(prefix)
    other.flush()
    assert view.vanished() and not View(prefix).vanished()
    assert header_of(view)[S_SEQ] == 1  # the old one can still be read


def test_nothing_is_there(prefix: str) -> None:
    with pytest.raises(NoSuchLayer, match=repr(prefix)):
        View(prefix)
    assert attached_to(Paths(prefix)) == {}


# -- tables ---------------------------------------------------------------------------------------


def test_the_rows_in_use(inspected: Inspected) -> None:
    view, queues = inspected.view, inspected.view.layout.queues
    assert view.table(header_of(view), queues) == {}
    for name in "abc":
        inspected.layer.send(name, {})
    gone = inspected.row("b")
    inspected.store.words[gone + R_GENERATION] = 0
    found = view.table(header_of(view), queues)
    assert found.keys() == {inspected.row("a"), inspected.row("c")}
    assert [name_in(words, Q_NAME) for words in found.values()] == ["a", "c"]
    assert {len(words) for words in found.values()} == {QUEUE_WORDS}


def test_a_row_that_changes_while_it_is_read_does_not_count(inspected: Inspected) -> None:
    """Its words may be those of two channels."""
    inspected.layer.send("a", {})
    inspected.layer.send("b", {})
    view, queues = inspected.view, inspected.view.layout.queues
    header, words = header_of(view), view.words

    def changing(first: int, count: int) -> memoryview[int]:
        found = words(first, count)
        inspected.store.words[inspected.row("a") + R_GENERATION] += 1
        return found

    view.words = changing  # type: ignore[method-assign]
    assert view.table(header, queues).keys() == {inspected.row("b")}


@pytest.mark.parametrize(
    ("word", "value"), [(T_HIGH, 1 << 40), (T_HIGH, 1000), (T_RESERVED, 1 << 40)]
)
def test_a_table_that_claims_more_than_there_is(
    inspected: Inspected, word: int, value: int
) -> None:
    inspected.layer.send("a", {})
    inspected.store.words[S_TABLES + word] = value
    view = inspected.view
    with pytest.raises(CorruptStore, match="contradict"):
        view.table(header_of(view), view.layout.queues)


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "length", "shown"),
    [
        (b"chat.room", 9, "chat.room"),
        (b"chat.room", 4, "chat"),
        (b"\x1b[31mred", 8, "?[31mred"),
        (b"caf\xc3\xa9", 5, "caf\ufffd\ufffd"),
        (b"x" * NAME_WORDS * WORD + b"next field", 1 << 31, "x" * NAME_WORDS * WORD),
    ],
)
def test_names_are_safe_to_print_and_no_longer_than_they_can_be(
    written: bytes, length: int, shown: str
) -> None:
    row = bytearray(QUEUE_WORDS * WORD)
    row[Q_NAME * WORD : Q_NAME * WORD + len(written)] = written
    words = memoryview(row).cast("Q")
    words[R_KEY] = length
    assert name_in(words, Q_NAME) == shown
