"""The isolation of test runs, on which the plugin and the test runner are built."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.aio import IPCChannelLayer as AsyncioLayer
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.segment.paths import SUFFIX
from asgi_ipc.testing import isolation
from asgi_ipc.testing.isolation import Isolation, isolate_worker
from tests import environments

NOTHING = (None, None)


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolation]:
    monkeypatch.setattr(isolation, "PATIENCE", 0.1)
    isolated = Isolation()
    isolated.begin()
    yield isolated
    isolated.end()
    assert SUFFIX not in os.environ


def shown(prefix: str) -> list[str]:
    return sorted(name for name in os.listdir("/dev/shm") if prefix in name)


def test_a_layer_from_before_is_moved_there_and_back(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("c", {"of": "the site"})
    isolated = Isolation()
    isolated.begin()
    assert layer.receive(["c"]) == NOTHING
    layer.send("c", {"of": "the test"})
    assert isolated.end() == []
    assert layer.receive(["c"]) == ("c", {"of": "the site"})
    assert layer.receive(["c"]) == NOTHING
    layer.close()
    assert shown(prefix) == [f"asgi_ipc.{prefix}", f"asgi_ipc.{prefix}.d"]


def test_destroy_removes_what_the_layer_would_use(prefix: str, isolated: Isolation) -> None:
    IPCChannelLayer(prefix).send("c", MESSAGE)
    assert shown(prefix) == [
        f"asgi_ipc.{prefix}{isolated.suffix}",
        f"asgi_ipc.{prefix}{isolated.suffix}.d",
    ]
    assert segment.destroy(prefix)
    assert shown(prefix) == []
    assert not segment.destroy(prefix)


def test_clean_removes_everything_of_the_run(prefix: str, isolated: Isolation) -> None:
    layers = [IPCChannelLayer(prefix), IPCChannelLayer(prefix + "-2")]
    for layer in layers:
        layer.send("c", MESSAGE)
    assert isolated.clean() == []
    assert shown(prefix) == []
    for layer in layers:
        assert layer.receive(["c"]) == NOTHING
        layer.close()


def test_a_process_that_is_still_attached_is_named(prefix: str, isolated: Isolation) -> None:
    source = f"""
import sys
from asgi_ipc import IPCChannelLayer
layer = IPCChannelLayer({prefix!r})
layer.send("c", {{}})
print("ready", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", source],
        env=environments.child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    (leak,) = isolated.clean()
    child.communicate()
    assert f"process {child.pid} ({sys.executable}" in leak and prefix in leak


async def test_a_receive_that_still_waits_is_told(prefix: str, isolated: Isolation) -> None:
    layer = AsyncioLayer(prefix)
    waiting = asyncio.ensure_future(layer.receive("c"))
    await asyncio.sleep(0)
    (leak,) = isolated.clean()
    assert "1 receive(s) still wait" in leak
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert isolated.clean() == []


def test_a_worker_is_apart_and_is_cleaned_up_after(prefix: str, isolated: Isolation) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("c", MESSAGE)
    before = os.environ[SUFFIX]
    isolate_worker()
    assert layer.receive(["c"]) == NOTHING
    layer.send("c", MESSAGE)
    os.environ[SUFFIX] = before
    assert len(shown(prefix)) == 4
    isolated.clean()
    assert shown(prefix) == []
