"""What other platforms lack, taken away on this one: robust mutexes, /dev/shm, posix_fallocate.

So run the paths that macOS takes: the lock is a flock, segments have short names and their files
lie under /tmp, and memory is not reserved.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.aio import IPCChannelLayer as AsyncLayer
from asgi_ipc.errors import IncompatibleSegment, LockTimeout, Reentered
from asgi_ipc.segment import header, paths, wanted
from asgi_ipc.segment.lock import FileLock
from asgi_ipc.segment.paths import Paths

from ..forks import Line, child, rests
from ..waiting import LIVENESS

POSSIBLE = ["no robust mutexes", "no /dev/shm", "no posix_fallocate", "no namespaces"]
PLATFORMS = [*POSSIBLE, "none of them"]


def take_away(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what in ("no robust mutexes", "none of them"):
        monkeypatch.setattr(wanted, "robust_mutexes", lambda: False)
    if what in ("no /dev/shm", "none of them"):
        monkeypatch.setattr(paths, "SHM", "/nonexistent/shm")
        monkeypatch.setattr(paths, "NEEDED", False)
    if what in ("no posix_fallocate", "none of them"):
        monkeypatch.delattr(os, "posix_fallocate")
    if what in ("no namespaces", "none of them"):
        monkeypatch.setattr(header, "namespace", lambda kind: 0)


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest, prefix: str) -> Iterator[str]:
    """One thing is missing, or all; what a test creates is removed under the same condition."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        take_away(request.param, monkeypatch)
        yield request.param
        segment.destroy(prefix)


def lock_of(layer: Any) -> Any:
    return layer._core.attach().attachment.lock


# -- both layers work -----------------------------------------------------------------------------


def test_the_blocking_layer(prefix: str, platform: str) -> None:
    layer = IPCChannelLayer(prefix, receive_timeout=0.05)
    message = {"text": "ü", "bytes": b"\x00", "list": [1, 2.5, None, True, {"a": {}}]}
    layer.send("a", message)
    layer.send("x!1", {"n": 1})
    assert layer.receive(["a"]) == ("a", message)
    assert layer.receive(["x!"]) == ("x!1", {"n": 1})
    assert layer.receive(["a"], block=True) == (None, None)
    layer.group_add("g", "a")
    layer.group_add("g", "x!2")
    assert sorted(layer.group_channels("g")) == ["a", "x!2"]
    layer.send_group("g", {"n": 2})
    assert layer.receive(["a"]) == ("a", {"n": 2})
    assert layer.receive(["x!"]) == ("x!2", {"n": 2})
    layer.send("a", {"pad": b"x" * 1_000_000})
    assert layer.global_statistics()["messages_pending"] == 1
    layer.flush()
    assert layer.receive(["a"]) == (None, None)
    layer.close()


async def test_the_asyncio_layer(prefix: str, platform: str) -> None:
    layer = AsyncLayer(prefix)
    name = await layer.new_channel()
    receives = [asyncio.ensure_future(layer.receive(channel)) for channel in ("a", name)]
    await asyncio.sleep(0.01)
    await layer.group_add("g", "a")
    await layer.group_add("g", name)
    await layer.group_send("g", {"n": 1})
    assert await asyncio.wait_for(asyncio.gather(*receives), LIVENESS) == [{"n": 1}] * 2
    receive = asyncio.ensure_future(layer.receive("a"))
    await asyncio.sleep(0.01)
    receive.cancel()
    await asyncio.gather(receive, return_exceptions=True)
    await layer.send("a", {"n": 2})
    assert await layer.receive("a") == {"n": 2}
    await layer.flush()
    await layer.close()


def test_another_process_is_woken(prefix: str, platform: str) -> None:
    """Queues, lock and doorbells between two processes, a thousand times there and back."""
    rounds = 1000

    def answer(_line: Line) -> None:
        other = IPCChannelLayer(prefix, receive_timeout=LIVENESS)
        for _ in range(rounds):
            _, message = other.receive(["there"], block=True)
            assert message is not None
            other.send("back", message)

    with child(answer) as process:
        layer = IPCChannelLayer(prefix, receive_timeout=LIVENESS)
        for number in range(rounds):
            layer.send("there", {"n": number})
            assert layer.receive(["back"], block=True) == ("back", {"n": number})
        process.hear()
        layer.close()


def test_threads_take_turns(prefix: str, platform: str) -> None:
    layer = IPCChannelLayer(prefix, capacity=10_000)

    def send(channel: str) -> None:
        for number in range(500):
            layer.send(channel, {"n": number})

    threads = [threading.Thread(target=send, args=(f"c{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIVENESS)
    for i in range(6):
        found = [layer.receive([f"c{i}"])[1] for _ in range(500)]
        assert found == [{"n": number} for number in range(500)]
    layer.close()


def test_a_process_that_is_killed_leaves_the_lock_free(prefix: str, platform: str) -> None:
    def send(line: Line) -> None:
        other = IPCChannelLayer(prefix, capacity=1_000_000)
        for number in range(1_000_000):
            other.send("a", {"n": number})
            if number == 50:
                line.say()

    for _ in range(5):
        with child(send) as process:
            process.hear()
        layer = IPCChannelLayer(prefix, lock_timeout=5)
        numbers = []
        while (found := layer.receive(["a"])[1]) is not None:
            numbers.append(found["n"])
        assert numbers == list(range(len(numbers))) and len(numbers) > 50
        layer.close()


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix_", ["asgi", "a" * 100, "x.y-z_0", "A", "a"])
def test_without_dev_shm_names_are_short_and_their_own(
    prefix_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away("no /dev/shm", monkeypatch)
    paths = Paths(prefix_)
    assert len(paths.segment) <= 31 and re.fullmatch(r"/[a-zA-Z0-9._-]+", paths.segment)
    assert paths.directory.startswith("/tmp/")
    others = {Paths(other).segment for other in ("asgi", "b", "a" * 99, "A", "a", "x")}
    assert len(others) == 6


def test_without_dev_shm_the_files_lie_under_tmp(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away("no /dev/shm", monkeypatch)
    layer = IPCChannelLayer(prefix, receive_timeout=0.01)
    layer.receive(["a"], block=True)
    paths = Paths(prefix)
    directory = Path(paths.directory)
    assert os.stat(directory).st_mode & 0o777 == 0o700
    names = {path.name for path in directory.iterdir()}
    assert {"attach.lock", "members"} <= names and len(names) == 3  # and a doorbell
    layer.close()
    assert segment.destroy(prefix)
    assert not directory.exists()


def test_without_dev_shm_a_segment_that_vanishes_is_noticed(
    prefix: str, monkeypatch: pytest.MonkeyPatch, no_garbage: None
) -> None:
    take_away("no /dev/shm", monkeypatch)
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    attachment = layer._core.attach().attachment
    assert not attachment.segment.vanished()
    segment.destroy(prefix)
    assert attachment.segment.vanished()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        attachment.segment.vanished()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    del attachment
    layer.close()


# -- the lock that is a file ----------------------------------------------------------------------


def test_without_robust_mutexes_the_lock_is_a_file(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away("no robust mutexes", monkeypatch)
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    assert isinstance(lock_of(layer), FileLock)
    assert os.path.exists(Paths(prefix).section_lock)
    layer.close()


def test_a_process_with_mutexes_is_refused_by_those_without(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of lock on one segment would exclude nobody."""
    with pytest.MonkeyPatch.context() as context:
        take_away("no robust mutexes", context)
        layer = IPCChannelLayer(prefix)
        layer.send("a", {})
    with pytest.raises(IncompatibleSegment, match="lock="):
        IPCChannelLayer(prefix).send("a", {})
    layer.close()


def test_a_stopped_holder_of_the_file_is_named(prefix: str) -> None:

    def hold(line: Line) -> None:
        other = IPCChannelLayer(prefix, lock="file")
        other.send("a", {})
        assert lock_of(other).trylock(None) == 0
        rests(line)

    with child(hold) as process:
        process.hear()
        layer = IPCChannelLayer(prefix, lock="file", lock_timeout=0.3)
        with pytest.raises(LockTimeout, match=str(process.pid)) as caught:
            layer.send("a", {})
        assert "SIGCONT" in str(caught.value)
    layer.send("a", {})
    layer.close()


class _SendsWhenDropped:
    def __init__(self, layer: IPCChannelLayer) -> None:
        self.layer = layer
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.layer.send("inner", {})
        except Reentered as error:
            self.error = error


def test_a_call_from_inside_a_call_is_refused(prefix: str, platform: str) -> None:
    """The outer one is unharmed, and the lock is free afterwards."""
    layer = IPCChannelLayer(prefix)
    layer.send("a", {"n": 1})
    layer.send("inner", {})
    sends = _SendsWhenDropped(layer)
    session = layer._core.attach()

    def operation() -> int:
        sends()
        return 7

    assert session.section(operation) == 7
    assert isinstance(sends.error, Reentered)
    layer.send("a", {"n": 2})
    assert [layer.receive(["a"])[1] for _ in range(2)] == [{"n": 1}, {"n": 2}]
    layer.close()


def test_nothing_is_reserved_where_that_cannot_be_done(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away("no posix_fallocate", monkeypatch)
    layer = IPCChannelLayer(prefix, capacity=100_000)
    for number in range(500):
        layer.send("a", {"n": number, "pad": b"x" * 5000})
    for number in range(500):
        message = layer.receive(["a"])[1]
        assert message is not None and message["n"] == number
    layer.close()
