"""Allocations of Python that fail, in the middle of any call. What is left is what any exception
leaves: the lock is free, the store is whole, and a message is there once or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.inspection import locked
from asgi_ipc.inspection.view import View
from asgi_ipc.segment.files import Members
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import MAX_PROCESSES

from ..compiling import needs_compiled
from ..forks import Line, child, on_linux
from ..waiting import LIVENESS

# Calls in a row that succeed, after which no allocation of a call is left to fail. Python 3.14 goes
# on without some that fail, of which several can follow each other.
CALM = 12
FEWEST = (
    20 if sys.version_info < (3, 14) else 5
)  # in two calls; since 3.14 most come from free lists
_testcapi: Any = pytest.importorskip("_testcapi", reason="lacking: _testcapi, Python's own tests")


def failing(at: int, count: int, call: Callable[..., Any], *args: Any) -> Any:
    """What `call` returns, or MemoryError, if `count` allocations fail from number `at` on."""
    _testcapi.set_nomemory(at, at + count)
    try:
        result = call(*args)
        _testcapi.remove_mem_hooks()
    except MemoryError:
        _testcapi.remove_mem_hooks()
        result = MemoryError
    return result


class Blocking:
    def __init__(self, prefix: str) -> None:
        self.layer = asgi_ipc.IPCChannelLayer(prefix)
        self.core = self.layer._core

    def send(self, channel: str, message: Any) -> Any:
        return self.layer.send(channel, message)

    def receive(self, channel: str) -> Any:
        return self.layer.receive([channel])[1]


class Asyncio(Blocking):
    """The calls of an event loop, as a task makes them: no call here has to wait."""

    def __init__(self, prefix: str) -> None:
        self.layer = asgi_ipc.aio.IPCChannelLayer(prefix)
        self.core = self.layer._core

    def send(self, channel: str, message: Any) -> Any:
        return step(self.layer.send(channel, message))

    def receive(self, channel: str) -> Any:
        return step(self.layer.receive(channel))


def step(call: Any) -> Any:
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("kind", [Blocking, Asyncio])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiled)])
def test_a_call_in_which_allocations_fail(
    prefix: str, compiled: bool, kind: Any, count: int, request: pytest.FixtureRequest
) -> None:
    channel = "c"
    if not compiled:
        request.getfixturevalue("pure")

    async def fail() -> tuple[int, set[int]]:
        """In an event loop, as any task, which has nothing to do."""
        layer = kind(prefix)
        layer.send(channel, MESSAGE)
        assert layer.receive(channel) == MESSAGE
        session = layer.core.session
        lock, row = session.attachment.lock, session.targets[channel].row
        sent, received, raised = 0, [], 0
        for what in ("send", "receive"):
            at = calm = 0
            while calm < CALM:
                sent += 1
                message = {"number": sent}
                if what == "receive":
                    layer.send(channel, message)
                    result = failing(at, count, layer.receive, channel)
                else:
                    result = failing(at, count, layer.send, channel, message)
                assert lock.holder() == 0
                raised += result is MemoryError
                calm = 0 if result is MemoryError else calm + 1
                if result not in (None, MemoryError):
                    received.append(result["number"])
                layer.core.group_channels("nobody")  # recovers, if that is necessary
                while session.pending(row):
                    received.append(layer.receive(channel)["number"])
                at += 1
        assert received == sorted(set(received)), "doubled, or out of order"
        return raised, set(range(1, sent + 1)) - set(received)

    def run(line: Line) -> tuple[int, set[int]]:
        gc.disable()  # it would allocate, and take most of the time
        return asyncio.run(fail())

    with child(run) as process:
        raised, missing = process.hear()
    assert raised > (0 if compiled else FEWEST)  # the compiled path allocates hardly anything
    assert len(missing) <= raised  # nothing is lost without a word
    assert locked.complaints(View(prefix), LIVENESS) == []


@on_linux
@pytest.mark.parametrize("count", [1, 12])
def test_a_layer_that_is_dropped_while_allocations_fail_is_let_go_later(
    prefix: str, count: int
) -> None:
    """Not by its finalizer, then: by the next call that attaches. To others it does not live on."""
    outside = asgi_ipc.IPCChannelLayer(prefix)
    outside.send("c", MESSAGE)

    def drop() -> tuple[int, int]:
        gc.disable()
        failures: list[object] = []
        sys.unraisablehook = lambda unraisable: failures.append(unraisable.exc_type)
        most = failed = at = calm = 0
        inherited = len(os.listdir("/dev/fd"))
        layer: Any = asgi_ipc.IPCChannelLayer(prefix)
        while calm < 5 * CALM:  # a failure in the hook itself is not seen
            layer.send("mine!", {"number": at})
            assert layer.receive(["mine!"]) == ("mine!", {"number": at})
            before = len(failures)
            if failing(at, count, layer.close) is MemoryError or len(failures) > before:
                failed, calm = failed + 1, 0
            else:
                calm += 1
            layer = asgi_ipc.IPCChannelLayer(prefix)
            layer.send("c", MESSAGE)
            assert layer.receive(["c"]) == ("c", MESSAGE)
            most = max(most, len(os.listdir("/dev/fd")) - inherited)
            at += 1
        layer.close()
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):  # the memory may stay mapped for the exceptions
                assert f"{prefix}.d" not in os.readlink(f"/dev/fd/{name}")
        return failed, most

    with child(lambda line: drop()) as process:
        failed, most = process.hear()
        members = Members.open(Paths(prefix).members, 0o600)
        assert not members.held(0, MAX_PROCESSES)
        members.close()
    assert failed > 5  # newer interpreters allocate less
    assert most < 30  # none is left open
    assert outside.receive(["c"]) == ("c", MESSAGE)
    assert locked.complaints(View(prefix), LIVENESS) == []
