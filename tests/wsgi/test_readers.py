"""Whether a process-specific channel still has a reader."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from asgi_ipc import IPCChannelLayer, errors
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.wsgi.readers import has_reader

from ..environments import child_environment
from ..waiting import until

READER = """
import sys, asgi_ipc
layer = asgi_ipc.IPCChannelLayer(sys.argv[1])
layer.receive(["theirs!"])
print("reads", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def layer(prefix: str) -> Iterator[IPCChannelLayer]:
    layer = IPCChannelLayer(prefix)
    yield layer
    layer.close()


@pytest.fixture
def reader(prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has received on ``theirs!``."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, prefix],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.readline() == "reads\n"
        yield process
        process.kill()


def test_the_first_that_receives_is_the_reader(layer: IPCChannelLayer) -> None:
    assert not has_reader(layer._core, "mine!1")
    layer.send("mine!1", MESSAGE)
    assert not has_reader(layer._core, "mine!1")
    layer.receive(["mine!"])
    assert has_reader(layer._core, "mine!1")
    assert has_reader(layer._core, "mine!another")


@pytest.mark.parametrize(
    "end",
    [lambda reader: reader.kill(), lambda reader: reader.communicate("\n")],
    ids=["killed", "ended"],
)
def test_a_reader_that_has_gone_is_none(
    layer: IPCChannelLayer, reader: subprocess.Popen[str], end: Callable[..., None]
) -> None:
    assert has_reader(layer._core, "theirs!1")
    end(reader)
    reader.wait()
    assert not has_reader(layer._core, "theirs!1")


def test_nor_is_one_whose_death_was_noticed(
    layer: IPCChannelLayer, reader: subprocess.Popen[str]
) -> None:
    reader.kill()
    reader.wait()
    layer.send("theirs!1", MESSAGE)

    def is_noticed() -> bool:
        layer.receive(["another"])  # about once a second, a call notices dead processes
        return not layer.channel_statistics("theirs!")["messages_pending"]

    until(is_noticed)
    assert not has_reader(layer._core, "theirs!1")


def test_to_ask_takes_nothing_and_makes_nothing(layer: IPCChannelLayer) -> None:
    layer.send("mine!1", MESSAGE)
    assert not has_reader(layer._core, "mine!1")
    assert not has_reader(layer._core, "nobodys!1")
    assert layer.receive(["mine!"]) == ("mine!1", MESSAGE)
    assert layer.global_statistics()["messages_count"] == 1


def test_a_name_that_cannot_be_is_refused(layer: IPCChannelLayer) -> None:
    with pytest.raises(errors.InvalidName):
        has_reader(layer._core, "a b!c")
