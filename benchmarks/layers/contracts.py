"""The two contracts of a channel layer in one shape, so that each workload is written once.

A workload is a coroutine that awaits the calls of a `Layer`. `Asynchronous` hands it the methods of
a layer for Channels 4 as they are. `Blocking` wraps those of a layer for Channels 1 in coroutines
that never suspend, so that `run_to_end` needs one ``send(None)`` and no event loop is in the way.

The wrapping takes a blocking layer 0.1 to 0.2 µs a call. Between two processes nobody can see that.
In a loop of pairs one could, so `pairs` is the one loop that is written twice, in the words of each
contract.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar, Union

T = TypeVar("T")
Message = dict[str, Any]

# 145 bytes in msgpack: what a chat room sends.
CHAT: Message = {
    "type": "chat.message",
    "room": "lobby",
    "user": "ada",
    "text": "The engine weaves algebraic patterns, just as the loom weaves flowers and leaves. "
    "So says the lady.",
}

SOCKETS = "sockets.bench!"  # what a server of Channels 1 receives on for all its sockets
SETTLE = 0.05  # seconds from the start of the last receive until all of them wait


class Blocking:
    """A layer for Channels 1: `layer.receive(channels, block)`."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._send, self._receive = layer.send, layer.receive

    @property
    def full(self) -> type[Exception]:
        """What `send` raises where a channel is full."""
        error: type[Exception] = self.layer.ChannelFull
        return error

    async def send(self, channel: str, message: Message) -> None:
        self._send(channel, message)

    async def receive(self, channel: str) -> Message:
        while True:
            found, message = self._receive([channel], True)
            if found is not None:
                received: Message = message
                return received

    async def new_channels(self, count: int) -> list[str]:
        """The process-specific channels of `count` sockets."""
        self._receive([SOCKETS])  # from now on they are known to be this process's
        return [f"{SOCKETS}{number}" for number in range(count)]

    async def receive_each(self, names: list[str], ready: str) -> float:
        """Receive a message for each of the sockets; send to `ready` when they wait for it. Returns
        when the last had it."""
        await self.send(ready, CHAT)
        left = set(names)
        while left:
            left.discard(self._receive([SOCKETS], True)[0])
        return time.monotonic()

    async def receive_no_more(self) -> None:
        """The sockets end."""

    async def group_add(self, group: str, channel: str) -> None:
        self.layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        self.layer.group_discard(group, channel)

    async def group_send(self, group: str, message: Message) -> None:
        self.layer.send_group(group, message)

    async def flush(self) -> None:
        self.layer.flush()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def pairs(self, channels: Iterable[str], message: Message) -> float:
        """Seconds of a send and a receive on each of the channels."""
        send, receive, start = self._send, self._receive, time.perf_counter()
        for channel in channels:
            send(channel, message)
            receive([channel], True)
        return time.perf_counter() - start


class Asynchronous:
    """A layer for Channels 4: `await layer.receive(channel)`."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.send, self.receive = layer.send, layer.receive
        self.sleep = asyncio.sleep
        self._sockets: list[asyncio.Task[None]] = []
        self._left = 0  # sockets that have nothing yet in this round
        self._all_heard: asyncio.Future[float]

    @property
    def full(self) -> type[Exception]:
        """What `send` raises where a channel is full: the layer's error, or Channels'."""
        if hasattr(self.layer, "ChannelFull"):
            error: type[Exception] = self.layer.ChannelFull
            return error
        from channels.exceptions import ChannelFull

        full: type[Exception] = ChannelFull
        return full

    async def new_channels(self, count: int) -> list[str]:
        """The process-specific channels of `count` sockets."""
        return [await self.layer.new_channel("sockets") for _ in range(count)]

    async def receive_each(self, names: list[str], ready: str) -> float:
        """Receive a message for each of the sockets; send to `ready` when they wait for it. Returns
        when the last had it. Each socket then receives again, as a consumer does."""
        self._left, self._all_heard = len(names), asyncio.get_running_loop().create_future()
        if not self._sockets:
            self._sockets = [asyncio.ensure_future(self._consume(name)) for name in names]
        await asyncio.sleep(SETTLE)
        await self.send(ready, CHAT)
        return await self._all_heard

    async def _consume(self, name: str) -> None:
        try:
            while True:
                await self.receive(name)
                self._left -= 1
                if not self._left:
                    self._all_heard.set_result(time.monotonic())
        except Exception as error:
            if not self._all_heard.done():
                self._all_heard.set_exception(error)

    async def receive_no_more(self) -> None:
        """The sockets end."""
        for socket in self._sockets:
            socket.cancel()
        await asyncio.gather(*self._sockets, return_exceptions=True)
        self._sockets.clear()

    async def group_add(self, group: str, channel: str) -> None:
        await self.layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        await self.layer.group_discard(group, channel)

    async def group_send(self, group: str, message: Message) -> None:
        await self.layer.group_send(group, message)

    async def flush(self) -> None:
        await self.layer.flush()

    async def pairs(self, channels: Iterable[str], message: Message) -> float:
        """Seconds of a send and a receive on each of the channels."""
        send, receive, start = self.send, self.receive, time.perf_counter()
        for channel in channels:
            await send(channel, message)
            await receive(channel)
        return time.perf_counter() - start


Layer = Union[Blocking, Asynchronous]


def run_to_end(workload: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose calls all block, so that it never suspends."""
    try:
        workload.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a workload waited for an event loop, on a layer that blocks")
