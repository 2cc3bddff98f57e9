"""The holder of the lock is stopped, not dead: other processes report it by its pid, and continue
by themselves once it continues or dies. Nobody may take its lock: it may continue at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import LockTimeout

from ..environments import child_environment
from ..forks import state_of
from ..processes import Process, running
from ..waiting import LIVENESS, in_threads, until

LOCKS = ("mutex", "file")
ENDS = ("continued", "killed")
TIMEOUT = 0.2  # seconds, the lock_timeout of those who are held up
DEFAULT = 10.0  # seconds, what it would be if nobody asked for another one

# Stops itself inside a section, in the middle of a change or not; then sends what proves that it
# went on as if nothing had been.
HOLDER = """
import os, signal, sys, asgi_ipc
from asgi_ipc.store.layout import S_DIRTY
prefix, lock, dirty = sys.argv[1:]
layer = asgi_ipc.IPCChannelLayer(prefix, lock=lock)
layer.send("holder", {"number": 0})
attachment = layer._core.attach().attachment
def operation():
    words = attachment.store.words
    words[S_DIRTY] = int(dirty)
    os.kill(os.getpid(), signal.SIGSTOP)
    words[S_DIRTY] = 0
attachment.section(operation)
layer.send("holder", {"number": 1})
"""


@pytest.fixture(params=LOCKS)
def lock(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def layer(prefix: str, lock: str) -> Iterator[Any]:
    made = asgi_ipc.IPCChannelLayer(
        prefix, lock=lock, lock_timeout=TIMEOUT, receive_timeout=LIVENESS
    )
    made.send("warm", MESSAGE)
    # A blocking receive of this thread, so that it has a doorbell.
    assert made.receive(["warm"], block=True) == ("warm", MESSAGE)
    yield made
    made.close()


@contextlib.contextmanager
def stopped(prefix: str, lock: str, tmp_path: Path, dirty: int = 0) -> Iterator[Process]:
    arguments = [sys.executable, "-c", HOLDER, prefix, lock, str(dirty)]
    with running(arguments, log=tmp_path / "log", environment=child_environment()) as process:
        process.wait_until(lambda: state_of(process.pid) == "T", "it to stop itself")
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)  # a stopped one is deaf to SIGTERM


def end(process: Process, how: str) -> int:
    """Let the holder go on, or kill it; returns how many messages it has sent then."""
    os.kill(process.pid, signal.SIGCONT if how == "continued" else signal.SIGKILL)
    code = process.wait_for_end()
    assert code == (0 if how == "continued" else -signal.SIGKILL), process.describe()
    return 2 if how == "continued" else 1


def refused(call: Callable[[], Any]) -> tuple[LockTimeout, float]:
    """The LockTimeout of a call, and how long it took."""
    begin = time.monotonic()
    with pytest.raises(LockTimeout) as raised:
        call()
    return raised.value, time.monotonic() - begin


@pytest.mark.parametrize("dirty", [0, 1])
@pytest.mark.parametrize("how", ENDS)
def test_others_name_the_holder_and_go_on_after_it(
    layer: Any, lock: str, tmp_path: Path, how: str, dirty: int
) -> None:
    aio = asgi_ipc.aio.IPCChannelLayer(layer.prefix, lock=lock, lock_timeout=TIMEOUT)
    asyncio.run(aio.send("warm", MESSAGE))
    assert asyncio.run(aio.receive("warm")) == MESSAGE
    with stopped(layer.prefix, lock, tmp_path, dirty) as holder:
        for call in (
            lambda: layer.send("c", MESSAGE),
            lambda: layer.receive(["c"]),
            lambda: layer.group_add("g", "c"),
            lambda: layer.send_group("g", MESSAGE),
            lambda: layer.group_channels("g"),
            lambda: layer.channel_statistics("c"),
            lambda: asyncio.run(aio.send("c", MESSAGE)),
            lambda: asyncio.run(aio.group_add("g", "c")),
            lambda: asyncio.run(aio.group_send("g", MESSAGE)),
        ):
            error, took = refused(call)
            assert f"process {holder.pid}" in str(error), str(error)
            assert "SIGCONT" in str(error) and isinstance(error, TimeoutError)
            assert took >= TIMEOUT * 0.9
            assert took < DEFAULT / 2  # the option was obeyed
        count = end(holder, how)
    # What was refused was not done.
    assert [layer.receive(["holder"])[1] for _ in range(count + 1)] == [
        *({"number": number} for number in range(count)),
        None,
    ]
    assert layer.receive(["c"]) == (None, None)
    assert layer.group_channels("g") == []
    layer.send("c", MESSAGE)
    assert asyncio.run(aio.receive("c")) == MESSAGE
    asyncio.run(aio.close())


@pytest.mark.parametrize("how", ENDS)
def test_waiting_receives_ride_it_out(
    layer: Any, lock: str, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both kinds wait before the stop; a receive that comes while it lasts waits as well."""
    aio = asgi_ipc.aio.IPCChannelLayer(layer.prefix, lock=lock, lock_timeout=TIMEOUT)
    parked = threading.Barrier(3)
    is_stopped = threading.Event()

    def blocking() -> Any:
        assert layer.receive(["none"]) == (None, None)
        parked.wait(LIVENESS)
        return layer.receive(["blocking"], block=True)[1]

    async def waiting() -> Any:
        first = asyncio.ensure_future(aio.receive("asyncio"))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(parked.wait, LIVENESS)
        await asyncio.to_thread(is_stopped.wait, LIVENESS)
        second = asyncio.ensure_future(aio.receive("later"))
        return [await first, await second]

    def disturb() -> int:
        parked.wait(LIVENESS)
        with stopped(layer.prefix, lock, tmp_path) as holder:
            is_stopped.set()
            # Both have met the lock by now, for longer than its timeout, and have said so.
            until(lambda: any(f"process {holder.pid}" in text for text in caplog.messages))
            refused(lambda: layer.send("blocking", MESSAGE))
            count = end(holder, how)
        for channel in ("blocking", "asyncio", "later"):
            layer.send(channel, {"to": channel})
        return count

    with caplog.at_level(logging.WARNING, "asgi_ipc"):
        results = in_threads([blocking, lambda: asyncio.run(waiting()), disturb])
    assert results[:2] == [{"to": "blocking"}, [{"to": "asyncio"}, {"to": "later"}]]


def test_a_receive_keeps_its_deadline_meanwhile(layer: Any, lock: str, tmp_path: Path) -> None:
    """Also one whose thread or loop has its doorbell, and so could wait."""
    aio = asgi_ipc.aio.IPCChannelLayer(layer.prefix, lock=lock, lock_timeout=TIMEOUT)
    nothing = (None, None)

    def blocking() -> Any:
        assert layer.receive(["c"], block=True, timeout=0.01) == nothing
        parked.wait(LIVENESS)
        is_stopped.wait(LIVENESS)
        return layer.receive(["c"], block=True, timeout=2 * TIMEOUT)

    async def waiting() -> Any:
        assert await aio.receive_async(["d"], timeout=0.01) == nothing
        await asyncio.to_thread(parked.wait, LIVENESS)
        await asyncio.to_thread(is_stopped.wait, LIVENESS)
        return await aio.receive_async(["d"], timeout=2 * TIMEOUT)

    def stop() -> None:
        parked.wait(LIVENESS)
        with stopped(layer.prefix, lock, tmp_path) as holder:
            is_stopped.set()
            over.wait(LIVENESS)
            end(holder, "killed")

    parked, is_stopped, over = threading.Barrier(3), threading.Event(), threading.Event()
    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        assert in_threads([blocking, lambda: asyncio.run(waiting())]) == [nothing] * 2
    finally:
        over.set()
        stopping.join()


def test_names_that_come_only_once_are_kept_meanwhile(
    layer: Any, lock: str, tmp_path: Path
) -> None:
    answers: list[Any] = []
    receiving = threading.Thread(
        target=lambda: answers.append(layer.receive(iter(["c"]), block=True)), daemon=True
    )
    with stopped(layer.prefix, lock, tmp_path) as holder:
        receiving.start()
        receiving.join(3 * TIMEOUT)
        assert not answers
        end(holder, "continued")
    layer.send("c", MESSAGE)
    receiving.join(LIVENESS)
    assert answers == [("c", MESSAGE)]


def test_loop_goes_on_meanwhile(layer: Any, lock: str, tmp_path: Path) -> None:
    """Whatever its tasks want of the layer, first calls included, and be it the blocking layer's
    `receive_async`, a loop is never held up for long: the lock is waited for in short stretches."""
    longest = 0.0

    async def beat(over: asyncio.Event) -> None:
        nonlocal longest
        while not over.is_set():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)

    async def live() -> None:
        aio = asgi_ipc.aio.IPCChannelLayer(layer.prefix, lock=lock, lock_timeout=TIMEOUT)
        over = asyncio.Event()
        beating = asyncio.ensure_future(beat(over))
        receiving = asyncio.ensure_future(aio.receive("c"))  # the first of this loop
        blocking = asyncio.ensure_future(layer.receive_async(["e"]))
        calls = [aio.send("d", MESSAGE), aio.group_add("g", "d"), aio.group_send("g", MESSAGE)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [LockTimeout] * len(calls)
        over.set()
        await beating
        receiving.cancel()
        await asyncio.wait([receiving])
        assert receiving.cancelled(), receiving.exception()
        blocking.cancel()
        await asyncio.wait([blocking])
        assert blocking.cancelled() or blocking.result() == (None, None)

    with stopped(layer.prefix, lock, tmp_path) as holder:
        asyncio.run(live())
        end(holder, "killed")
    print(f"lock={lock}: the loop was held up for {longest * 1000:.0f} ms at most")
    assert longest < DEFAULT / 4


@pytest.mark.parametrize("call", ["flush", "first receive of a thread", "first call of a process"])
def test_every_call_obeys_lock_timeout(layer: Any, lock: str, tmp_path: Path, call: str) -> None:
    with stopped(layer.prefix, lock, tmp_path) as holder:
        if call == "flush":
            error, took = refused(layer.flush)
            said = str(error)
        elif call == "first receive of a thread":
            began = time.monotonic()
            answers: list[Any] = []

            def receive() -> None:
                try:
                    answers.append(layer.receive(["c"], block=True))
                except Exception as error:
                    answers.append(error)

            thread = threading.Thread(target=receive, daemon=True)
            thread.start()
            thread.join(2 * TIMEOUT)
            # A receive rides it out, the first one of its thread as well.
            assert not answers
            end(holder, "killed")
            layer.send("c", MESSAGE)
            thread.join(LIVENESS)
            assert answers == [("c", MESSAGE)]
            took, said = time.monotonic() - began, f"process {holder.pid}"
        else:
            source = f"""
import time, asgi_ipc
layer = asgi_ipc.IPCChannelLayer({layer.prefix!r}, lock={lock!r}, lock_timeout={TIMEOUT})
begin = time.monotonic()
try:
    layer.send("c", {{}})
except asgi_ipc.errors.LockTimeout as error:
    print(time.monotonic() - begin, error)
"""
            arguments = [sys.executable, "-c", source]
            with running(
                arguments, log=tmp_path / "second", environment=child_environment()
            ) as second:
                first, _, said = second.wait().partition(" ")
            took = float(first)
        assert f"process {holder.pid}" in said
        assert took < DEFAULT / 2
