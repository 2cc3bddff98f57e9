"""What the tests of blocking layers do with them."""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from .base import MESSAGE, in_threads, patience, until

NOTHING = (None, None)
STATISTICS = {
    "messages_count",
    "messages_count_per_second",
    "messages_pending",
    "messages_max_age",
    "channel_full_count",
    "channel_full_count_per_second",
}


def receivable(channel: str) -> str:
    """The name by which receive takes `channel`."""
    head, mark, _local = channel.partition("!")
    return head + mark


def round_trip(layer: Any, message: Any) -> Any:
    layer.send("c", message)
    channel, received = layer.receive(["c"])
    assert channel == "c"
    return received


def send_numbers(layer: Any, channel: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        layer.send(channel, {"number": number})


def numbers(received: Iterable[tuple[str, Any]]) -> list[int]:
    return [message["number"] for _channel, message in received]


def drain(layer: Any, channels: list[str]) -> list[tuple[str, Any]]:
    """All that is waiting on `channels`."""
    return list(iter(lambda: layer.receive(channels), NOTHING))


def wait(layer: Any, channels: list[str]) -> Any:
    """What the first blocking receive brings that is not cut short by the built-in time."""
    return until(lambda: something(layer.receive(channels, block=True)))


def something(received: Any) -> Any:
    return None if received == NOTHING else received


def is_accepted(layer: Any, channel: str, message: Any) -> bool:
    """Whether a send finds room."""
    remind_of_the_time(layer)
    try:
        layer.send(channel, message)
    except layer.ChannelFull:
        return False
    return True


def members_of(layer: Any, group: str) -> set[str]:
    remind_of_the_time(layer)
    return set(layer.group_channels(group))


def remind_of_the_time(layer: Any) -> None:
    """Some layers look for what expired only when somebody receives."""
    assert layer.receive(["nothing.is.ever.sent.here"]) == NOTHING


def check_statistics(layer: Any, name: str, ask: Callable[[], dict[str, float]]) -> None:
    """Checks the statistic `name` after three sends, one that found no room, and one receive."""
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


def received_while_sending(layer: Any, receive: Callable[[Any, list[str]], Any]) -> Any:
    """What comes of `receive` on an empty channel, asked again whenever it gives up."""
    started = threading.Event()

    def receive_it() -> Any:
        started.set()
        return until(lambda: something(receive(layer, ["c"])))

    def send_it() -> None:
        started.wait()
        layer.send("c", MESSAGE)

    return in_threads([receive_it, send_it])[0]


def in_event_loop(layer: Any, channels: list[str]) -> Any:
    """What receive_async returns in an event loop of its own."""
    return asyncio.run(asyncio.wait_for(layer.receive_async(channels), patience()))


def in_reactor(layer: Any, channels: list[str]) -> Any:
    """What the Deferred of receive_twisted fires with."""
    from twisted.internet.defer import maybeDeferred
    from twisted.python.failure import Failure

    fired: queue.Queue[Any] = queue.Queue()
    running_reactor().callFromThread(
        lambda: maybeDeferred(layer.receive_twisted, channels).addBoth(fired.put)
    )
    result = fired.get(timeout=patience())
    if isinstance(result, Failure):
        result.raiseException()
    return result


@functools.cache
def running_reactor() -> Any:
    """Twisted's reactor, which can be started only once, in a thread until the process ends."""
    reactor: Any = importlib.import_module("twisted.internet.reactor")
    run = functools.partial(reactor.run, installSignalHandlers=False)
    threading.Thread(target=run, name="reactor", daemon=True).start()
    atexit.register(reactor.callFromThread, reactor.stop)
    return reactor
