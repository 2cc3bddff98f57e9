"""What the tests of blocking layers do with them. Must not import anything of the package around
`conformance`."""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib
import inspect
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Optional, Protocol, TypeVar

import pytest

from .base import MESSAGE, Contract, Layer, Message, T, in_threads, patience, until
from .shared import Client, SharedCases

Received = tuple[Optional[str], Optional[Message]]
Suite = TypeVar("Suite", bound=type[Contract])

NOTHING = (None, None)
STATISTICS = {
    "messages_count",
    "messages_count_per_second",
    "messages_pending",
    "messages_max_age",
    "channel_full_count",
    "channel_full_count_per_second",
}


class BlockingLayer(Layer, Protocol):
    """A layer of Channels 1, as the suite calls it."""

    @property
    def ChannelFull(self) -> type[Exception]: ...
    @property
    def MessageTooLarge(self) -> type[Exception]: ...
    def send(self, channel: str, message: Message) -> object: ...
    def receive(self, channels: list[str], block: bool = False) -> Received: ...
    def new_channel(self, pattern: str) -> str: ...
    def group_add(self, group: str, channel: str) -> None: ...
    def group_discard(self, group: str, channel: str) -> None: ...
    def group_channels(self, group: str) -> Iterable[str]: ...
    def send_group(self, group: str, message: Message) -> None: ...
    def flush(self) -> None: ...
    def global_statistics(self) -> dict[str, float]: ...
    def channel_statistics(self, channel: str) -> dict[str, float]: ...
    def receive_twisted(self, channels: list[str]) -> object: ...
    async def receive_async(self, channels: list[str]) -> Received: ...


def receivable(channel: str) -> str:
    """Return the name by which receive takes `channel`."""
    head, mark, _local = channel.partition("!")
    return head + mark


def round_trip(layer: BlockingLayer, message: Message) -> Message:
    layer.send("c", message)
    channel, received = layer.receive(["c"])
    assert channel == "c" and received is not None
    return received


def send_numbers(layer: BlockingLayer, channel: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        layer.send(channel, {"number": number})


def numbers(received: Iterable[Received]) -> list[int]:
    return [message["number"] for _channel, message in received if message is not None]


def drain(layer: BlockingLayer, channels: list[str]) -> list[Received]:
    """Return all messages that are pending on `channels`."""
    return list(iter(lambda: layer.receive(channels), NOTHING))


def wait(layer: BlockingLayer, channels: list[str]) -> Received:
    """Receive, blocking; again whenever the built-in time runs out first."""
    return until(lambda: something(layer.receive(channels, block=True)))


def something(received: Received) -> Received | None:
    return None if received == NOTHING else received


def is_accepted(layer: BlockingLayer, channel: str, message: Message) -> bool:
    """Send, and return whether there was room."""
    remind_of_the_time(layer)
    try:
        layer.send(channel, message)
    except layer.ChannelFull:
        return False
    return True


def members_of(layer: BlockingLayer, group: str) -> set[str]:
    remind_of_the_time(layer)
    return set(layer.group_channels(group))


def remind_of_the_time(layer: BlockingLayer) -> None:
    """Receive once: some layers look for what expired only during a receive."""
    assert layer.receive(["nothing.is.ever.sent.here"]) == NOTHING


def check_statistics(layer: BlockingLayer, name: str, ask: Callable[[], dict[str, float]]) -> None:
    """Check the statistic `name` after three sends, one that found no room, and one receive."""
    send_numbers(layer, "c", range(3))
    assert not is_accepted(layer, "c", MESSAGE)
    layer.receive(["c"])
    statistics = ask()
    assert set(statistics) <= STATISTICS
    if name not in statistics:
        pytest.skip(f"the layer does not count {name}")
    value = statistics[name]
    expected = {"messages_count": 3, "messages_pending": 2, "channel_full_count": 1}
    assert value == expected.get(name, value)
    assert value >= 0


# -- other ways to receive ------------------------------------------------------------------------


def received_while_sending(
    layer: BlockingLayer, receive: Callable[[BlockingLayer, list[str]], Received]
) -> Received:
    """Call `receive` on an empty channel until it returns what is sent meanwhile."""
    started = threading.Event()

    def receive_it() -> Received:
        started.set()
        return until(lambda: something(receive(layer, ["c"])))

    def send_it() -> Received:
        started.wait()
        layer.send("c", MESSAGE)
        return NOTHING

    return in_threads([receive_it, send_it])[0]


def in_event_loop(layer: BlockingLayer, channels: list[str]) -> Received:
    """Run receive_async in a new event loop."""
    return asyncio.run(asyncio.wait_for(layer.receive_async(channels), patience()))


def in_reactor(layer: BlockingLayer, channels: list[str]) -> Received:
    """Call receive_twisted in the reactor, and wait for the result of its Deferred."""
    from twisted.internet.defer import maybeDeferred
    from twisted.python.failure import Failure

    fired: queue.Queue[Any] = queue.Queue()
    running_reactor().callFromThread(
        lambda: maybeDeferred(layer.receive_twisted, channels).addBoth(fired.put)
    )
    result = fired.get(timeout=patience())
    if isinstance(result, Failure):
        result.raiseException()
    received: Received = result
    return received


@functools.cache
def running_reactor() -> Any:
    """Return Twisted's reactor, in a thread until the process ends: it starts only once."""
    reactor: Any = importlib.import_module("twisted.internet.reactor")
    run = functools.partial(reactor.run, installSignalHandlers=False)
    threading.Thread(target=run, name="reactor", daemon=True).start()
    atexit.register(reactor.callFromThread, reactor.stop)
    return reactor


# -- the shared cases -----------------------------------------------------------------------------


class BlockingClient(Client):
    """A blocking layer as the shared cases call it: no call suspends."""

    def __init__(self, layer: BlockingLayer) -> None:
        self._layer = layer

    @property
    def ChannelFull(self) -> type[Exception]:
        return self._layer.ChannelFull

    @property
    def MessageTooLarge(self) -> type[Exception]:
        return self._layer.MessageTooLarge

    async def send(self, channel: str, message: Message) -> None:
        self._layer.send(channel, message)

    async def receive(self, channel: str) -> Message:
        name, message = self._layer.receive([channel])
        assert name == channel and message is not None
        return message

    async def drain(self, channel: str) -> list[Message]:
        received = drain(self._layer, [channel])
        assert all(name == channel for name, _message in received)
        return [message for _name, message in received if message is not None]

    async def is_accepted(self, channel: str, message: Message) -> bool:
        return is_accepted(self._layer, channel, message)

    async def group_add(self, group: str, channel: str) -> None:
        self._layer.group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        self._layer.group_discard(group, channel)

    async def group_send(self, group: str, message: Message) -> None:
        self._layer.send_group(group, message)

    async def members_of(self, group: str, candidates: list[str]) -> set[str]:
        members = members_of(self._layer, group)
        assert members <= set(candidates)
        return members

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def together(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        return in_threads(functools.partial(run_to_end, call) for call in calls)


def without_event_loop(suite: Suite) -> Suite:
    """Turn the shared cases, which are coroutines, into plain functions of `suite`."""
    for name, case in vars(SharedCases).items():
        if inspect.iscoroutinefunction(case) and name not in vars(suite):
            setattr(suite, name, _plain(case))
    return suite


def _plain(case: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(case)
    def test(*args: object, **fixtures: object) -> None:
        run_to_end(case(*args, **fixtures))

    return test


def run_to_end(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result."""
    try:
        call.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    raise AssertionError("a blocking call suspended")
