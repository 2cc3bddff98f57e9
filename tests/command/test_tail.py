"""tail: messages are seen as they pass, and nothing is taken."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer

from ..environments import child_environment
from ..processes import Process, running
from .conftest import Run

Tail = Callable[..., Any]


@pytest.fixture
def tail(prefix: str, tmp_path: Path) -> Tail:
    @contextmanager
    def tail(*arguments: str) -> Iterator[Process]:
        with running(
            [sys.executable, "-u", "-m", "asgi_ipc", "tail", "--prefix", prefix, *arguments],
            log=tmp_path / "tail.log",
            environment=child_environment(),
        ) as process:
            process.wait_for_output("Watching")
            yield process

    return tail


def lines(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]


@pytest.fixture
def layer(prefix: str) -> IPCChannelLayer:
    layer = IPCChannelLayer(prefix)
    layer.flush()
    return layer


def test_messages_are_seen_and_not_taken(layer: IPCChannelLayer, tail: Tail) -> None:
    with tail("a", "--json", "--count", "2") as watching:
        layer.send("a", {"secret": 1})
        layer.send("other", {})
        layer.send("a", {"secret": 2})
        watching.wait()
        first, second = lines(watching)
    assert (first["queue"], first["channels"], first["pending"]) == ("a", ["a"], True)
    assert second["seq"] == first["seq"] + 2
    assert first["bytes"] == 9 and first["expiry"] == pytest.approx(60)
    assert "secret" not in watching.output()
    assert [layer.receive(["a"])[1] for _ in range(2)] == [{"secret": 1}, {"secret": 2}]


def test_payloads_only_when_asked_for(layer: IPCChannelLayer, tail: Tail) -> None:
    with tail("--all", "--payload", "--json", "--count", "1") as watching:
        layer.send("a", {"text": "hello", "body": b"\x00"})
        watching.wait()
    (seen,) = lines(watching)
    assert seen["message"] == {"text": "hello", "body": {"$bytes": "AA=="}}


def test_patterns_and_full_names(layer: IPCChannelLayer, tail: Tail) -> None:
    with tail("chat.*", "web!two", "--count", "3") as watching:
        layer.send("chat.room", {})
        layer.send("web!one", {})
        layer.send("web!two", {})
        layer.send("chat.hall", {})
        watching.wait()
    output = watching.output()
    assert output.index(" chat.room ") < output.index(" web!two ") < output.index(" chat.hall ")
    assert "web!one" not in output


def test_a_broadcast_is_one_message_for_many(layer: IPCChannelLayer, tail: Tail) -> None:
    for name in "abcde":
        layer.group_add("g", f"web!{name}")
    with tail("--all", "--json", "--count", "1") as watching:
        layer.send_group("g", {})
        watching.wait()
    (seen,) = lines(watching)
    assert sorted(seen["channels"]) == [f"web!{name}" for name in "abcde"]


def test_it_ends_in_time_and_by_ctrl_c(
    layer: IPCChannelLayer, tail: Tail, run: Run, interruptible: None
) -> None:
    assert run("tail", "--all", "--seconds", "0.1").code == 0
    with tail("--all") as watching:
        watching._child.send_signal(signal.SIGINT)
        assert watching.wait_for_end() == 0


def test_it_says_when_the_layer_is_removed(
    layer: IPCChannelLayer, tail: Tail, run: Run, prefix: str
) -> None:
    with tail("--all") as watching:
        layer.close()
        run("destroy", "--force")
        assert watching.wait_for_end() == 3
        assert "was removed" in watching.output()


def test_channels_or_all(layer: IPCChannelLayer, run: Run) -> None:
    assert run("tail").code == 2
    assert run("tail", "a", "--all").code == 2
