"""What the tests of asynchronous layers do with them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from .base import LIVENESS, MESSAGE, patience

END = {"text": "nothing came before this"}


async def receive(layer: Any, channel: str) -> Any:
    """A receive that fails where nothing comes."""
    return await asyncio.wait_for(layer.receive(channel), patience())


async def round_trip(layer: Any, message: Any) -> Any:
    await layer.send("c", message)
    return await receive(layer, "c")


async def send_numbers(layer: Any, channel: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        await layer.send(channel, {"number": number})


def numbers(received: Iterable[Any]) -> list[int]:
    return [message["number"] for message in received]


async def drain(layer: Any, channel: str) -> list[Any]:
    """All that is waiting on `channel`, which must have room for one more."""
    await layer.send(channel, END)
    received = []
    while (message := await receive(layer, channel)) != END:
        received.append(message)
    return received


async def members_of(layer: Any, group: str, channels: list[str]) -> set[str]:
    """Those of `channels` where a message to `group` arrives; nothing else may wait there."""
    await remind_of_the_time(layer)
    await layer.group_send(group, MESSAGE)
    return {channel for channel in channels if MESSAGE in await drain(layer, channel)}


async def remind_of_the_time(layer: Any) -> None:
    """Some layers look for what expired only when somebody does something."""
    if "groups" in layer.extensions:
        await layer.group_send("nobody", MESSAGE)


async def turns(count: int) -> None:
    """Lets everything else in the event loop have `count` turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def together(calls: Iterable[Awaitable[Any]], bound: float | None = None) -> list[Any]:
    """The results of all `calls`, made at once."""
    return await asyncio.wait_for(asyncio.gather(*calls), bound or patience())


async def eventually(condition: Callable[[], Awaitable[Any]], bound: float = LIVENESS) -> Any:
    """Polls `condition` until it is true, and returns its value; fails after `bound` seconds."""
    deadline = time.monotonic() + bound
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"nothing came of it within {bound} seconds"
        await asyncio.sleep(0.005)
    return value


async def cancel(task: asyncio.Task[Any], after: int) -> list[Any]:
    """Cancels `task` after so many turns; its result, if it had one by then."""
    await turns(after)
    task.cancel()
    result: Any = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(result, asyncio.CancelledError):
        return []
    if isinstance(result, BaseException):
        raise result
    return [result]


def in_loop(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Starts `call` in a loop of another thread."""
    return asyncio.run_coroutine_threadsafe(call, loop)


@contextlib.contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own; what still waits in the end is cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def cancel_the_rest() -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    try:
        yield loop
    finally:
        in_loop(loop, cancel_the_rest()).result(patience())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(patience())
        loop.close()
