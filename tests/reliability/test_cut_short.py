"""Somebody cuts a segment short while processes use it. The kernel kills a process that touches
what is missing (SIGBUS). One that waits, or leaves, does not touch it, and says what happened."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import CorruptHeader
from asgi_ipc.store.layout import PAGE, Q_WAITERS, WAITER_SET_WORDS
from asgi_ipc.store.store import Store

from ..forks import Line, children, on_linux, state_of
from ..waiting import LIVENESS, until

pytestmark = on_linux  # where a segment is a file

LENGTHS = {"nothing is left": 0, "the first page is left": PAGE, "the last page is missing": -PAGE}


def complaint(call: Any, *args: Any, **named: Any) -> str:
    """What a call says. The error is let go of: it refers to all that was going on."""
    try:
        call(*args, **named)
    except CorruptHeader as error:
        return str(error)
    return ""


def sockets_of(prefix: str) -> str:
    """What two receives of a loop say."""

    async def receive() -> str:
        layer = asgi_ipc.aio.IPCChannelLayer(prefix)
        own = await layer.new_channel()
        errors = await asyncio.gather(
            layer.receive("quiet"), layer.receive(own), return_exceptions=True
        )
        assert all(isinstance(error, CorruptHeader) for error in errors), errors
        await asyncio.sleep(1.5)  # so that the loop looks once more, after all receives have ended
        await layer.close()
        return str(errors[0])

    return asyncio.run(receive())


def waiters_at(store: Store, row: int) -> int:
    waiting = store.words[row + Q_WAITERS : row + Q_WAITERS + WAITER_SET_WORDS]
    return sum(bin(bits).count("1") for bits in waiting)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_process_that_waits_says_so_and_one_that_leaves_is_not_killed(
    prefix: str, length: str
) -> None:
    layer = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=2 * LIVENESS)
    layer.send("c", MESSAGE)
    store = layer._core.session.store
    size = layer._core.session.attachment.segment.layout.size

    def leaves(call: Any) -> Any:
        def run(line: Line) -> None:
            line.say(call())
            gc.collect()
            line.say("left")
            line.hear()

        return run

    def one_thread() -> str:
        return complaint(waiting.receive, ["quiet"], block=True)

    def no_call() -> str:
        idle = asgi_ipc.IPCChannelLayer(prefix)
        idle.send("here", MESSAGE)
        until(lambda: os.stat(f"/dev/shm/asgi_ipc.{prefix}").st_size < size)
        idle.close()
        return "cut short"

    waiting = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=2 * LIVENESS)
    ways = [leaves(one_thread), leaves(lambda: sockets_of(prefix)), leaves(no_call)]
    with children(ways) as processes:
        until(lambda: sum(waiters_at(store, row) for row in store.queues.rows()) == 3)
        until(lambda: "here" in names(store))
        # In no call any more.
        until(lambda: all(state_of(process.pid) == "S" for process in processes))
        os.truncate(f"/dev/shm/asgi_ipc.{prefix}", LENGTHS[length] % size)
        assert "cut short" in complaint(layer.flush)
        assert "destroy" in complaint(layer.send, "c", MESSAGE)  # others still live
        for process in processes:
            assert "cut short" in process.hear()
            assert process.hear() == "left"
        gc.collect()
        layer.send("c", MESSAGE)
        assert layer.receive(["c"]) == ("c", MESSAGE)


def names(store: Any) -> set[str]:
    return {store.queues.name(row).decode() for row in store.queues.rows()}
