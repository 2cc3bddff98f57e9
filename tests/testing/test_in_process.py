"""The layers over memory of one process. tests/conformance has the tests of their contracts."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc.conformance.asynchronous import running_loop
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.segment import lock
from asgi_ipc.store.verify import verify
from asgi_ipc.testing import in_process
from asgi_ipc.testing.aio import InProcessChannelLayer as AsyncioLayer
from asgi_ipc.testing.sync import InProcessChannelLayer as BlockingLayer

from ..waiting import LIVENESS, in_threads, until

NOTHING = (None, None)


@pytest.fixture
def layer(prefix: str) -> Iterator[BlockingLayer]:
    layer = BlockingLayer(prefix, receive_timeout=LIVENESS)
    yield layer
    layer.close()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_in_shared_memory(layer: BlockingLayer) -> None:
    threading.Thread(target=layer.receive, args=(["c"], True)).start()
    layer.send("c", MESSAGE)
    layer.group_add("g", "c")
    assert not [name for name in os.listdir("/dev/shm") if layer.prefix in name]


def test_channels_1_takes_it_for_one_that_needs_workers() -> None:
    for made in (AsyncioLayer, BlockingLayer):
        assert "inmemory" not in made.__module__


async def test_both_layers_of_a_prefix_share_a_store(layer: BlockingLayer) -> None:
    other = AsyncioLayer(layer.prefix)
    channel = await other.new_channel()
    layer.group_add("g", channel)
    layer.send_group("g", MESSAGE)
    assert await other.receive(channel) == MESSAGE
    await other.close()


def test_another_prefix_is_another_store(layer: BlockingLayer) -> None:
    layer.send("c", MESSAGE)
    assert BlockingLayer(layer.prefix + "x").receive(["c"]) == NOTHING


def test_shared_memory_of_the_same_prefix_is_another_store(layer: BlockingLayer) -> None:
    shared = asgi_ipc.IPCChannelLayer(layer.prefix)
    layer.send("c", {"in": "this process"})
    shared.send("c", {"in": "shared memory"})
    assert layer.receive(["c"]) == ("c", {"in": "this process"})
    assert shared.receive(["c"]) == ("c", {"in": "shared memory"})
    shared.close()


def test_a_closed_layer_finds_its_messages_again(layer: BlockingLayer) -> None:
    layer.send("c", MESSAGE)
    layer.close()
    gc.collect()
    assert layer.receive(["c"]) == ("c", MESSAGE)


def test_the_store_goes_with_its_last_layer(prefix: str) -> None:
    BlockingLayer(prefix).send("c", MESSAGE)
    gc.collect()
    assert BlockingLayer(prefix).receive(["c"]) == NOTHING


def test_a_thread_and_a_loop_wake_each_other(layer: BlockingLayer) -> None:
    other = AsyncioLayer(layer.prefix)
    with running_loop() as loop:
        asking = asyncio.run_coroutine_threadsafe(other.receive("question"), loop)

        def ask_and_hear() -> Any:
            layer.send("question", MESSAGE)
            return layer.receive(["answer"], block=True)

        def answer() -> None:
            question = asking.result(LIVENESS)
            asyncio.run_coroutine_threadsafe(other.send("answer", question), loop).result(LIVENESS)

        assert in_threads([ask_and_hear, answer])[0] == ("answer", MESSAGE)
        asyncio.run_coroutine_threadsafe(other.close(), loop).result(LIVENESS)


def test_many_threads_lose_and_double_nothing(prefix: str) -> None:
    layer = BlockingLayer(prefix, capacity=10_000, receive_timeout=LIVENESS)
    numbers = range(2000)

    def send(first: int) -> None:
        for number in numbers[first::4]:
            layer.send(f"c{number % 3}", {"number": number})

    def receive() -> list[int]:
        got = []
        while (message := layer.receive(["c0", "c1", "c2"], block=True)[1]) != {"end": True}:
            got.append(message["number"])
        layer.send("c0", {"end": True})
        return got

    threads = [threading.Thread(target=send, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()

    def end() -> list[int]:
        for thread in threads:
            thread.join(LIVENESS)
        until(lambda: layer.global_statistics()["messages_pending"] == 0)
        layer.send("c0", {"end": True})
        return []

    got = in_threads([receive, receive, receive, end])
    assert sorted(sum(got, [])) == list(numbers)
    assert verify(layer._core.attach().store, time.monotonic()) == []


def test_a_forked_child_begins_with_an_empty_store(layer: BlockingLayer) -> None:
    layer.send("c", MESSAGE)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            first = layer.receive(["c"])
            layer.send("c", {"of": "the child"})
            code = 0 if first == NOTHING and layer.receive(["c"])[0] == "c" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert layer.receive(["c"]) == ("c", MESSAGE)
    assert layer.receive(["c"]) == NOTHING


def test_nothing_stays_open(prefix: str, no_garbage: None) -> None:
    def use() -> None:
        layer = BlockingLayer(prefix, receive_timeout=0.001)
        in_threads([lambda: layer.receive(["c"], block=True)])
        layer.send("c", MESSAGE)
        other = AsyncioLayer(prefix)
        assert asyncio.run(other.receive("c")) == MESSAGE

    use()
    before = descriptors()
    for _ in range(20):
        use()
    # What leaks does so each time. A thread of an earlier test may open one meanwhile.
    assert descriptors() < before + 20


def test_other_sizes_replace_a_store_that_nobody_uses(
    layer: BlockingLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer.send("c", MESSAGE)
    layer.close()
    gc.collect()
    other = BlockingLayer(layer.prefix, message_memory=10 << 20)
    with caplog.at_level(logging.WARNING, "asgi_ipc"):
        assert other.receive(["c"]) == NOTHING
    assert "replacing" in caplog.text


@pytest.mark.parametrize("why", ["option", "platform"])
def test_with_a_file_as_its_lock(prefix: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, whose mutexes are not robust."""
    if why == "platform":
        monkeypatch.setattr("asgi_ipc.segment.wanted.robust_mutexes", lambda: False)
    layer = BlockingLayer(prefix, lock="file" if why == "option" else "mutex")
    session = layer._core.attach()
    assert isinstance(session.attachment.lock, lock.FileLock)
    path = Path(session.attachment.segment.paths.section_lock)
    in_threads([functools.partial(layer.send, "c", MESSAGE)] * 4)
    child = os.fork()
    if child == 0:
        wrong = layer.receive(["c"]) != NOTHING
        del session, layer  # and with it the lock of the child
        gc.collect()
        os._exit(wrong)
    assert os.waitpid(child, 0)[1] == 0
    assert [layer.receive(["c"]) for _ in range(5)] == [("c", MESSAGE)] * 4 + [NOTHING]
    assert path.exists()
    del session, layer
    gc.collect()
    assert not path.exists()


def test_a_bell_that_is_full_has_been_heard() -> None:
    bell = in_process._Bell()
    for _ in range(100_000):
        bell.ring(5)
    assert bell.answer() == [0]
    assert bell.answer() == []
    bell.close()
    bell.ring(5)
