"""What the tests of asynchronous layers do with them. Must not import anything of the package
around `conformance`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol

from .base import LIVENESS, MESSAGE, Layer, Message, T, patience
from .shared import Client
from .shared import numbers as numbers

END = {"text": "nothing came before this"}


class AsyncioLayer(Layer, Protocol):
    """A layer of Channels 4, as the suite calls it."""

    async def send(self, channel: str, message: Message) -> object: ...
    async def receive(self, channel: str) -> Message: ...
    async def new_channel(self, prefix: str = ...) -> str: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...
    async def flush(self) -> None: ...


class Errors(Protocol):
    """The contract of a layer, which knows its errors: the layer has no attributes for them."""

    @property
    def ChannelFull(self) -> type[Exception]: ...
    @property
    def MessageTooLarge(self) -> type[Exception]: ...


async def receive(layer: AsyncioLayer, channel: str) -> Message:
    """Receive, and fail if nothing comes."""
    return await asyncio.wait_for(layer.receive(channel), patience())


async def send_numbers(layer: AsyncioLayer, channel: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        await layer.send(channel, {"number": number})


async def drain(layer: AsyncioLayer, channel: str) -> list[Message]:
    """Return all messages that are pending on `channel`, which must have room for one more."""
    await layer.send(channel, END)
    received = []
    while (message := await receive(layer, channel)) != END:
        received.append(message)
    return received


async def members_of(layer: AsyncioLayer, group: str, channels: list[str]) -> set[str]:
    """Return those of `channels` where a message to `group` arrives; no other may be pending."""
    await remind_of_the_time(layer)
    await layer.group_send(group, MESSAGE)
    return {channel for channel in channels if MESSAGE in await drain(layer, channel)}


async def remind_of_the_time(layer: AsyncioLayer) -> None:
    """Send to no member: some layers look for what expired only during a call."""
    if "groups" in layer.extensions:
        await layer.group_send("nobody", MESSAGE)


async def turns(count: int) -> None:
    """Give everything else in the event loop `count` turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def together(calls: Iterable[Awaitable[T]], bound: float | None = None) -> list[T]:
    """Make all `calls` at once, and return their results."""
    return await asyncio.wait_for(asyncio.gather(*calls), bound or patience())


async def eventually(condition: Callable[[], Awaitable[T | None]], bound: float = LIVENESS) -> T:
    """Poll `condition` until it is true, and return its value; fail after `bound` seconds."""
    deadline = time.monotonic() + bound
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"still waiting after {bound} seconds"
        await asyncio.sleep(0.005)
    return value


async def cancel(task: asyncio.Task[T], after: int) -> list[T]:
    """Cancel `task` after this many turns, and return its result if it had one by then."""
    await turns(after)
    task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(result, asyncio.CancelledError):
        return []
    if isinstance(result, BaseException):
        raise result
    return [result]


def in_loop(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, T]) -> Future[T]:
    """Start `call` in a loop of another thread."""
    return asyncio.run_coroutine_threadsafe(call, loop)


@contextlib.contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a new thread; at the end, cancel the tasks that still wait."""
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


class AsyncioClient(Client):
    """An asynchronous layer as the shared cases call it."""

    def __init__(self, layer: AsyncioLayer, errors: Errors) -> None:
        self._layer = layer
        self._errors = errors

    @property
    def ChannelFull(self) -> type[Exception]:
        return self._errors.ChannelFull

    @property
    def MessageTooLarge(self) -> type[Exception]:
        return self._errors.MessageTooLarge

    async def send(self, channel: str, message: Message) -> None:
        await self._layer.send(channel, message)

    async def receive(self, channel: str) -> Message:
        return await receive(self._layer, channel)

    async def drain(self, channel: str) -> list[Message]:
        return await drain(self._layer, channel)

    async def is_accepted(self, channel: str, message: Message) -> bool:
        await remind_of_the_time(self._layer)
        try:
            await self._layer.send(channel, message)
        except self.ChannelFull:
            return False
        return True

    async def group_add(self, group: str, channel: str) -> None:
        await self._layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        await self._layer.group_discard(group, channel)

    async def group_send(self, group: str, message: Message) -> None:
        await self._layer.group_send(group, message)

    async def members_of(self, group: str, candidates: list[str]) -> set[str]:
        return await members_of(self._layer, group, candidates)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def together(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        return await together(calls)
