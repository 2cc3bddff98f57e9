"""Somebody removes the segment while processes are attached: each process says so within a second,
with the cause; the next call makes a new segment; and the two never mix."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc import segment
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import SegmentVanished
from asgi_ipc.segment.paths import Paths
from asgi_ipc.segment.shm import unlink_memory

from ..environments import child_environment
from ..processes import Process, running
from ..waiting import LIVENESS, until

BOUND = 10.0  # seconds until a process must have noticed: ten times what it takes
THREADS = 16

COMMON = """
THREADS = 16
import asyncio, sys, threading, time, asgi_ipc, asgi_ipc.aio
from asgi_ipc.errors import SegmentVanished
prefix = sys.argv[1]
def say(error, who="it"):
    print(f"vanished {time.monotonic()} {who} {error}", flush=True)
layer = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=60, capacity=1000)
aio = asgi_ipc.aio.IPCChannelLayer(prefix, capacity=1000)
"""

# Each waits or sends until it is told, and then, after the next call, answers on "healed".
KINDS = {
    "blocking, waiting": """
layer.send("ready", {})
try:
    layer.receive(["quiet"], block=True)
except SegmentVanished as error:
    say(error)
message = layer.receive(["go"], block=True)[1]
layer.send("healed", message)
""",
    "blocking, waiting for its own": """
layer.receive(["own!"])
layer.send("ready", {})
try:
    layer.receive(["own!", "quiet"], block=True)
except SegmentVanished as error:
    say(error)
message = layer.receive(["go"], block=True)[1]
layer.send("healed", message)
""",
    "blocking, sending": """
layer.send("ready", {})
number = 0
try:
    while True:
        try:
            layer.send("stream", {"generation": 1, "number": number})
        except layer.ChannelFull:
            pass
        number += 1
        time.sleep(0.001)
except SegmentVanished as error:
    say(error)
message = layer.receive(["go"], block=True)[1]
layer.send("healed", message)
""",
    "blocking, sixteen threads": """
def wait(number):
    layer.send("ready", {})
    try:
        layer.receive([f"quiet{number}"], block=True)
    except SegmentVanished as error:
        say(error, f"thread{number}")
threads = [threading.Thread(target=wait, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
    time.sleep(0.05)  # so that they do not all look at the same moment
for thread in threads:
    thread.join()
message = layer.receive(["go"], block=True)[1]
layer.send("healed", message)
""",
    "asyncio, waiting": """
async def main():
    own = await aio.new_channel()
    await aio.send("ready", {})
    waiting = [aio.receive("quiet"), aio.receive(own), aio.receive_async(["a", "b"], None)]
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, SegmentVanished), error
    say(error)
    await aio.send("healed", await aio.receive("go"))
asyncio.run(main())
""",
    "asyncio, sending": """
async def main():
    await aio.send("ready", {})
    number = 0
    try:
        while True:
            try:
                await aio.send("stream", {"generation": 1, "number": number})
            except aio.ChannelFull:
                pass
            number += 1
            await asyncio.sleep(0.001)
    except SegmentVanished as error:
        say(error)
    await aio.send("healed", await aio.receive("go"))
asyncio.run(main())
""",
}


@pytest.fixture
def layer(prefix: str) -> Iterator[Any]:
    made = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=LIVENESS, capacity=1000)
    yield made
    made.close()


@contextlib.contextmanager
def started(kinds: list[str], prefix: str, tmp_path: Path) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                running(
                    [sys.executable, "-c", COMMON + KINDS[kind], prefix],
                    log=tmp_path / f"log{number}",
                    environment=child_environment(),
                )
            )
            for number, kind in enumerate(kinds)
        ]


def unlink(prefix: str) -> None:
    unlink_memory(Paths(prefix).segment)


def remove_directory(prefix: str) -> None:
    shutil.rmtree(Paths(prefix).directory)


def remove_everything(prefix: str) -> None:
    """Remove both in as short a time as can be: a process that attached in between would lose the
    files of its new segment, and see a second one vanish."""
    directory = Paths(prefix).directory
    os.rename(directory, f"{directory}.removed")
    unlink(prefix)
    shutil.rmtree(f"{directory}.removed")


WAYS: dict[str, Callable[[str], Any]] = {
    "segment": unlink,
    "segment and files": remove_everything,
    "destroy": segment.destroy,
}


def noticed(process: Process, how_many: int = 1) -> list[tuple[float, str]]:
    """When a process said that the segment is gone, and its words."""
    process.wait_until(
        lambda: process.output().count("vanished ") >= how_many, "it to notice", 2 * BOUND
    )
    return [
        (float(when), said)
        for when, said in re.findall(r"^vanished (\S+) (.*)$", process.output(), re.MULTILINE)
    ]


@pytest.mark.parametrize("way", WAYS)
def test_everybody_says_so_and_the_next_call_heals_it(
    layer: Any, prefix: str, tmp_path: Path, way: str
) -> None:
    with started(list(KINDS), prefix, tmp_path) as processes:
        ready = len(KINDS) + THREADS - 1  # one of them has that many threads
        for _ in range(ready):
            assert layer.receive(["ready"], block=True) == ("ready", {})
        begin = time.monotonic()
        WAYS[way](prefix)
        for kind, process in zip(KINDS, processes):
            threads = THREADS if "threads" in kind else 1
            for when, said in noticed(process, threads):
                print(f"{way}: {kind}: {when - begin:.2f} s")
                assert when - begin < BOUND
                assert prefix in said and "removed" in said and "RemoveIPC" in said
        # This process notices it too, and says so once.
        with pytest.raises(SegmentVanished, match="RemoveIPC"):
            until(lambda: layer.send("own", MESSAGE), bound=BOUND)
        for number, _ in enumerate(processes):
            layer.send("go", {"number": number})
        healed = [layer.receive(["healed"], block=True)[1]["number"] for _ in processes]
        assert sorted(healed) == list(range(len(processes)))
        for process in processes:
            process.wait()


@pytest.mark.parametrize("way", WAYS)
def test_a_restart_heals_it(layer: Any, prefix: str, tmp_path: Path, way: str) -> None:
    """A process that starts right after it gets a new segment, even if others use the old one."""
    layer.send("old", MESSAGE)
    WAYS[way](prefix)
    source = COMMON + "layer.send('new', {}); assert layer.receive(['new', 'old']) == ('new', {})"
    arguments = [sys.executable, "-c", source, prefix]
    environment = child_environment()
    with running(arguments, log=tmp_path / "log", environment=environment) as process:
        process.wait()
    with pytest.raises(SegmentVanished):
        until(lambda: layer.send("old", MESSAGE), bound=BOUND)
    layer.send("new", MESSAGE)
    assert layer.receive(["old", "new"]) == ("new", MESSAGE)
    assert layer.receive(["old", "new"]) == (None, None)


@pytest.mark.parametrize("way", WAYS)
def test_generations_never_mix(layer: Any, prefix: str, tmp_path: Path, way: str) -> None:
    """Old senders go on for a moment; a new reader never sees what they send."""
    kinds = ["blocking, sending", "asyncio, sending", "blocking, waiting"]
    with started(kinds, prefix, tmp_path) as processes:
        for _ in kinds:
            layer.receive(["ready"], block=True)
        layer.receive(["stream"], block=True)
        layer.close()
        WAYS[way](prefix)
        # It attaches again at once, while the others have not noticed yet.
        layer.send("stream", {"generation": 2})
        assert layer.receive(["stream"]) == ("stream", {"generation": 2})
        received = []
        while not all("vanished" in process.output() for process in processes):
            received.append(layer.receive(["stream", "quiet"])[1])
            time.sleep(0.005)
        assert received and not any(received)
        # All of them now use the new segment, with every kind of wakeup, and only one.
        layer.send("stream", {"generation": 2})
        for number, _ in enumerate(kinds):
            layer.send("go", {"number": number})
        healed = [layer.receive(["healed"], block=True)[1]["number"] for _ in kinds]
        assert sorted(healed) == list(range(len(kinds)))
        assert layer.receive(["stream"]) == ("stream", {"generation": 2})
        for process in processes:
            process.wait()


def test_removal_of_the_files_beside_the_segment(layer: Any, prefix: str, tmp_path: Path) -> None:
    """The byte locks that tell who lives are lost, and so are the doorbells. A new process must not
    believe that the others are dead."""
    with started(["blocking, waiting for its own"], prefix, tmp_path) as (process,):
        layer.receive(["ready"], block=True)
        directory = Path(Paths(prefix).directory)
        until(lambda: sum(path.is_fifo() for path in directory.iterdir()) == 2)  # it sleeps
        layer.group_add("group", "own!member")
        remove_directory(prefix)
        (_, said), *_ = noticed(process)
        assert "removed" in said
        with pytest.raises(SegmentVanished):
            until(lambda: layer.send("own!member", MESSAGE), bound=BOUND)
        layer.send("go", {"number": 1})
        assert layer.receive(["healed"], block=True) == ("healed", {"number": 1})
        process.wait()


@pytest.mark.parametrize("way", ["segment and files", "destroy"])
def test_first_receive_of_a_thread_that_comes_after_it(layer: Any, prefix: str, way: str) -> None:
    """There is no directory for its doorbell: the cause is the same, and so are the words."""
    layer.send("c", MESSAGE)
    WAYS[way](prefix)
    with pytest.raises(SegmentVanished, match="RemoveIPC"):
        layer.receive(["quiet"], block=True)
    layer.send("c", MESSAGE)
    assert layer.receive(["c"], block=True) == ("c", MESSAGE)
