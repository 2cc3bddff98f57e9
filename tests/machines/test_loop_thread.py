"""The event loop that runs in its own thread."""

from __future__ import annotations

import asyncio
import os
import resource
import threading

import pytest

from asgi_ipc.errors import RemoteUnavailable, SegmentError
from asgi_ipc.machines.loop_thread import LoopThread

from ..forks import in_child
from ..waiting import LIVENESS


async def answer() -> int:
    return 42


def test_a_loop_that_cannot_be_made_is_an_error_and_not_waited_for() -> None:
    def try_twice() -> int:
        thread = LoopThread("test")
        unlimited = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.open("/", os.O_RDONLY)  # the first number that is free
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, unlimited[1]))
        with pytest.raises(SegmentError, match="cannot run an event loop in a thread"):
            thread.submit(answer())
        resource.setrlimit(resource.RLIMIT_NOFILE, unlimited)
        return thread.submit(answer()).result(LIVENESS)

    assert in_child(try_twice) == 42


def test_a_call_that_another_thread_stops_is_told_so_and_not_cancelled() -> None:
    thread = LoopThread("test")

    async def begin() -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = threading.Event()
    future = thread.submit(begin())
    assert begun.wait(LIVENESS)
    thread.stop()
    with pytest.raises(RemoteUnavailable, match="closed by another thread"):
        future.result(LIVENESS)
    assert thread.submit(answer()).result(LIVENESS) == 42
    thread.stop()


def test_what_runs_in_a_thread_that_is_stopped_starts_no_other() -> None:
    """Else a layer goes on after its close(), and makes shared memory again that was removed."""
    thread = LoopThread("test")
    begun, stopped = threading.Event(), threading.Event()

    async def go_on() -> None:
        begun.set()
        assert stopped.wait(LIVENESS)
        thread.submit(answer())

    future = thread.submit(go_on())
    assert begun.wait(LIVENESS)
    thread.stop(wait=False)
    stopped.set()
    with pytest.raises(RemoteUnavailable, match="closed by another thread"):
        future.result(LIVENESS)
    assert thread._thread is None
    assert thread.submit(answer()).result(LIVENESS) == 42
    thread.stop()
