"""A tap on a log that others write to: each message is seen once, or counted as missed."""

from __future__ import annotations

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.inspection import tap as tap_module
from asgi_ipc.inspection.tap import Tap
from asgi_ipc.inspection.view import View
from asgi_ipc.store.layout import L_QUEUE, Q_FIRST, R_GENERATION, RECORD_WORDS, WORD

from .inspected import Inspected


@pytest.fixture
def inspected(prefix: str) -> Inspected:
    return Inspected(prefix)


def test_messages_in_order_with_whether_they_were_taken(inspected: Inspected) -> None:
    layer, tap = inspected.layer, Tap(inspected.view)
    layer.send("a", {"n": 1})
    layer.send("b", {"n": 2})
    layer.receive(["a"])
    first, second = tap.look()
    assert (first.queue, first.channels, first.pending) == ("a", ("a",), False)
    assert (second.queue, second.pending) == ("b", True)
    assert [layer._core.codec.decode(one.body)["n"] for one in (first, second)] == [1, 2]
    assert second.expires - second.sent == pytest.approx(60)
    assert tap.look() == [] and (tap.passed, tap.missed) == (2, 0)


def test_it_starts_with_what_comes_after_it(inspected: Inspected) -> None:
    inspected.layer.send("a", {})
    tap = Tap(inspected.view)
    inspected.layer.send("b", {})
    assert [seen.queue for seen in tap.look()] == ["b"]


def test_a_group_send_names_the_readers_in_a_process(inspected: Inspected) -> None:
    layer, tap = inspected.layer, Tap(inspected.view)
    for name in ("one", "two"):
        layer.group_add("g", f"web!{name}")
    layer.send_group("g", {})
    (seen,) = tap.look()
    assert seen.queue == "web!" and sorted(seen.channels) == ["web!one", "web!two"]


def test_a_record_that_is_being_overwritten_is_missed(inspected: Inspected) -> None:
    store, tap = inspected.store, Tap(inspected.view)
    inspected.layer.send("a", {"text": "x" * 100})
    body = (store.words[inspected.row("a") + Q_FIRST] + RECORD_WORDS) * WORD
    before = store.buffer[body + 50 : body + 51]
    store.buffer[body + 50 : body + 51] = b"y"
    assert tap.look() == [] and (tap.passed, tap.missed) == (1, 1)
    store.buffer[body + 50 : body + 51] = before  # it is whole again
    inspected.layer.send("a", {"text": "after"})
    assert len(tap.look()) == 1 and (tap.passed, tap.missed) == (2, 1)


def test_a_name_is_read_again_when_another_queue_gets_the_row(inspected: Inspected) -> None:
    layer, tap = inspected.layer, Tap(inspected.view)
    layer.send("a", {})
    assert [seen.queue for seen in tap.look()] == ["a"]
    layer.flush()
    layer.send("b", {})
    assert [seen.queue for seen in tap.look()] == ["b"]


def test_few_names_are_kept(inspected: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "_NAMES_KEPT", 5)
    tap = Tap(inspected.view)
    for number in range(20):
        inspected.layer.send(f"c{number}", {})
    assert [seen.queue for seen in tap.look()] == [f"c{number}" for number in range(20)]
    assert len(tap._names) <= 6


def test_a_queue_that_is_none(inspected: Inspected) -> None:
    store, tap = inspected.store, Tap(inspected.view)
    inspected.layer.send("a", {})
    record = store.words[inspected.row("a") + Q_FIRST]
    store.halves[2 * record + L_QUEUE] = inspected.row("a") + R_GENERATION
    assert [seen.queue for seen in tap.look()] == ["?"]


def test_one_look_is_bounded(inspected: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "_RECORDS_AT_ONCE", 3)
    tap = Tap(inspected.view)
    for _ in range(10):
        inspected.layer.send("a", {})
    assert len(tap.look()) == 3 and (tap.passed, tap.missed) == (10, 7)


def test_what_came_and_went_is_counted(prefix: str) -> None:
    """Each message that was sent is either seen once or counted as missed, in any traffic."""
    layer = IPCChannelLayer(prefix)
    layer.flush()
    tap = Tap(View(prefix))
    seen: list[int] = []
    sent = 0
    for turn in range(300):
        for i in range(turn % 7):  # some wait, some are taken at once, the log empties and wraps
            layer.send(f"c{i % 3}", {"n": sent, "text": "x" * (turn * 37 % 900)})
            sent += 1
            if i % 3 != turn % 3:
                layer.receive([f"c{i % 3}"])
        if turn % 50 == 0:
            while layer.receive(["c0", "c1", "c2"])[0] is not None:
                pass
        seen += [message.seq for message in tap.look()]
    assert seen == sorted(set(seen))
    assert tap.passed == sent
    assert len(seen) + tap.missed == sent
    assert len(seen) > sent / 3


def test_a_look_after_each_message_misses_none(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.flush()
    tap = Tap(View(prefix))
    bodies = []
    for number in range(500):
        layer.send("a", {"n": number, "text": "x" * (number * 31 % 4000)})
        if number % 9:
            layer.receive(["a"])
        bodies += [layer._core.codec.decode(seen.body)["n"] for seen in tap.look()]
    assert bodies == list(range(500)) and tap.missed == 0
