"""Doorbells that cannot be made: for want of inodes, descriptors or a permission. Receives look for
messages by themselves then, and say so once."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
import asgi_ipc.testing.sync
from asgi_ipc.aio import waiter
from asgi_ipc.conformance.base import MESSAGE

from ..forks import bounded
from ..waiting import LIVENESS

WHY = [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM]


class Bells:
    """Whether doorbells can be made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.why = 0
        self.made = 0
        self._mkfifo = os.mkfifo
        monkeypatch.setattr(os, "mkfifo", self.mkfifo)

    def mkfifo(self, path: str, mode: int) -> None:
        if self.why:
            raise OSError(self.why, os.strerror(self.why), path)
        self.made += 1
        self._mkfifo(path, mode)


@pytest.fixture
def bells(monkeypatch: pytest.MonkeyPatch) -> Bells:
    return Bells(monkeypatch)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "50 ms" in line]


@pytest.mark.parametrize("why", WHY)
def test_a_message_that_is_there_is_taken(
    prefix: str, bells: Bells, why: int, caplog: pytest.LogCaptureFixture
) -> None:
    layer = asgi_ipc.IPCChannelLayer(prefix)
    bells.why = why
    for channel in ("c", "process.1!", "d"):
        layer.send(channel + ("x" if "!" in channel else ""), MESSAGE)
        assert layer.receive([channel, "other"], block=True, timeout=LIVENESS)[1] == MESSAGE
    [line] = warnings(caplog)
    assert os.strerror(why) in line and prefix in line


def test_a_message_that_comes_is_found(prefix: str, bells: Bells) -> None:
    layer = asgi_ipc.IPCChannelLayer(prefix)
    bells.why = errno.ENOSPC
    timer = threading.Timer(0.2, layer.send, ("c", MESSAGE))
    timer.start()
    assert layer.receive(["c"], block=True, timeout=LIVENESS) == ("c", MESSAGE)
    assert layer.receive(["c"], block=True, timeout=0.1) == (None, None)
    timer.join()


def test_a_loop_finds_what_comes(
    prefix: str, bells: Bells, caplog: pytest.LogCaptureFixture
) -> None:
    layer = asgi_ipc.aio.IPCChannelLayer(prefix)
    bells.why = errno.EACCES

    async def run() -> None:
        channel = await layer.new_channel()
        await layer.send("there", MESSAGE)
        assert await layer.receive("there") == MESSAGE
        waiting = [asyncio.ensure_future(layer.receive(name)) for name in ("c", channel)]
        await asyncio.sleep(0.1)
        for name in ("c", channel):
            await layer.send(name, MESSAGE)
        assert await asyncio.gather(*waiting) == [MESSAGE, MESSAGE]
        assert await layer.receive_async(["c"], timeout=0.1) == (None, None)

    with bounded():
        asyncio.run(run())
    assert len(warnings(caplog)) == 1


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, before[1]))
    try:
        while True:
            try:
                taken.append(os.dup(taken[0]))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in taken:
            os.close(number)


@pytest.mark.parametrize(
    "kind", [asgi_ipc.IPCChannelLayer, asgi_ipc.testing.sync.InProcessChannelLayer]
)
def test_without_descriptors(prefix: str, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    layer = kind(prefix)
    layer.send("c", MESSAGE)
    with no_descriptors():
        found = layer.receive(["c"], block=True, timeout=LIVENESS)
        layer.send("c", MESSAGE)
        again = layer.receive(["c"], block=True, timeout=LIVENESS)
        nothing = layer.receive(["c"], block=True, timeout=0.06)
    assert found == again == ("c", MESSAGE) and nothing == (None, None)
    assert len(warnings(caplog)) <= 1


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_it_is_made_once_it_can_be(
    prefix: str, bells: Bells, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(waiter, "CHECK_EVERY", 0.2)
    other = asgi_ipc.IPCChannelLayer(prefix)
    bells.why = errno.EMFILE

    def later() -> None:
        bells.why = 0

    timers = [
        threading.Timer(0.3, later),
        threading.Timer(1.0, other.send, ("c", MESSAGE)),
    ]
    for timer in timers:
        timer.start()
    if kind == "blocking":
        layer = asgi_ipc.IPCChannelLayer(prefix)
        assert layer.receive(["c"], block=True, timeout=LIVENESS) == ("c", MESSAGE)
    else:
        with bounded():
            aio = asgi_ipc.aio.IPCChannelLayer(prefix)
            assert asyncio.run(aio.receive("c")) == MESSAGE
    assert bells.made == 1
    for timer in timers:
        timer.join()
