"""Every message that is dropped is counted, for the layer and for its channel, by reason, and
logged at most once in ten seconds, with its channel and group named, by the logger ``asgi_ipc``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import asgi_ipc.attachment.drops
from asgi_ipc import IPCChannelLayer
from asgi_ipc.aio import IPCChannelLayer as AsyncLayer
from asgi_ipc.errors import ChannelFull
from asgi_ipc.store.layout import (
    BUFFER,
    CAPACITY,
    DEAD_OWNER,
    DROP_REASONS,
    EXPIRED,
    MEMORY,
    Q_DROPS,
    S_BURY_AT,
    S_DROPS,
    S_SWEEP_AT,
    UNDECODABLE,
)

from ..forks import Line, child, in_child, rests
from ..waiting import LIVENESS, until


@pytest.fixture
def make(prefix: str) -> Iterator[Callable[..., IPCChannelLayer]]:
    made = []

    def make_layer(**options: Any) -> IPCChannelLayer:
        made.append(IPCChannelLayer(prefix, **options))
        return made[-1]

    yield make_layer
    for layer in made:
        layer.close()


def store_of(layer: Any) -> Any:
    return layer._core.attach().store


def drops(layer: Any) -> dict[str, int]:
    """The counters by reason, without those that are 0."""
    words = store_of(layer).words
    counts = {reason: words[S_DROPS + i] for i, reason in enumerate(DROP_REASONS)}
    return {reason: count for reason, count in counts.items() if count}


def drops_of(layer: Any, queue: str) -> int:
    """The sum of one queue's counters. If it is the only queue, those of the layer tell why."""
    store = store_of(layer)
    row = store.queues.find(queue.encode())
    assert row, f"there is no queue {queue}"
    return sum(store.words[row + Q_DROPS : row + Q_DROPS + len(DROP_REASONS)])


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "asgi_ipc"]


def upkeep(layer: IPCChannelLayer) -> None:
    """Do the upkeep now that any call does when it is due."""
    session = layer._core.attach()
    session.attachment.upkeep.check_at = session.attachment.due = 0.0
    session.store.doubles[S_SWEEP_AT] = session.store.doubles[S_BURY_AT] = 0.0
    layer.receive(["nobody.sends.here"])


# -- counted --------------------------------------------------------------------------------------


def test_capacity_in_a_group_send(
    make: Callable[..., IPCChannelLayer], caplog: pytest.LogCaptureFixture
) -> None:
    layer = make(capacity=2)
    layer.group_add("chat", "full")
    layer.group_add("chat", "other")
    layer.send("full", {"n": 0})
    for number in range(1, 5):
        layer.send_group("chat", {"n": number})
        layer.receive(["other"])
    assert drops(layer) == {DROP_REASONS[CAPACITY]: 3}
    assert drops_of(layer, "full") == 3 and drops_of(layer, "other") == 0
    (line,) = lines(caplog)
    assert "'chat'" in line and "'full'" in line and "capacity" in line


def test_memory_in_a_group_send(
    make: Callable[..., IPCChannelLayer], caplog: pytest.LogCaptureFixture
) -> None:
    layer = make(message_memory=65_536, max_message_size=4096, capacity=100_000)
    layer.group_add("chat", "member")
    with pytest.raises(ChannelFull):
        while True:
            layer.send("filler", {"pad": bytes(4000)})
    for _ in range(5):
        layer.send_group("chat", {"pad": bytes(4000)})
    assert drops(layer) == {DROP_REASONS[MEMORY]: 5}
    assert drops_of(layer, "member") == 5
    (line,) = lines(caplog)
    assert "'chat'" in line and "'member'" in line and "memory" in line


def test_a_refused_send_is_not_a_drop(make: Callable[..., IPCChannelLayer]) -> None:
    """The sender knows of it."""
    layer = make(capacity=1)
    layer.send("a", {})
    with pytest.raises(ChannelFull):
        layer.send("a", {})
    assert drops(layer) == {} and drops_of(layer, "a") == 0
    assert layer.channel_statistics("a")["channel_full_count"] == 1


def test_wrong_key(make: Callable[..., IPCChannelLayer], caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("cryptography", reason="lacking: cryptography")
    sender = make(symmetric_encryption_keys=["theirs"])
    receiver = make(symmetric_encryption_keys=["ours"])
    for _ in range(4):
        sender.send("a", {})
    sender.send("x!1", {})
    assert receiver.receive(["a"]) == (None, None)
    assert receiver.receive(["x!"]) == (None, None)
    assert drops(receiver) == {DROP_REASONS[UNDECODABLE]: 5}
    assert drops_of(receiver, "a") == 4 and drops_of(receiver, "x!") == 1
    (line,) = lines(caplog)
    assert "'a'" in line and "undecodable" in line


@pytest.mark.parametrize("how", ["receive", "upkeep", "send when full", "group send when full"])
def test_expiry(make: Callable[..., IPCChannelLayer], how: str) -> None:
    layer = make(expiry=0.05, capacity=3)
    for number in range(3):
        layer.send("a", {"n": number})
    layer.group_add("chat", "a")
    time.sleep(0.06)
    if how == "receive":
        assert layer.receive(["a"]) == (None, None)
    elif how == "upkeep":
        upkeep(layer)
    elif how == "send when full":
        layer.send("a", {"n": 3})
    else:
        layer.send_group("chat", {"n": 3})
    assert drops(layer) == {DROP_REASONS[EXPIRED]: 3}
    assert drops_of(layer, "a") == 3


@pytest.mark.parametrize("how", ["receive", "upkeep"])
async def test_expiry_in_the_buffer_of_a_local_part(prefix: str, how: str) -> None:
    layer, hasty = AsyncLayer(prefix), AsyncLayer(prefix, expiry=0.1)
    slow, other = await layer.new_channel(), await layer.new_channel()
    for number in range(5):
        await hasty.send(slow, {"n": number})
    await layer.send(other, {})
    await layer.receive(other)  # drains what is there for both
    await asyncio.sleep(0.12)
    if how == "receive":
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(layer.receive(slow), 0.01)
    else:
        session = layer._core.attach()
        session.attachment.upkeep.check_at = session.attachment.due = 0.0
        await layer.group_channels("nobody")
    assert drops(layer) == {DROP_REASONS[EXPIRED]: 5}
    assert drops_of(layer, slow.partition("!")[0] + "!") == 5
    await layer.close()


async def test_a_full_buffer_of_a_local_part(prefix: str) -> None:
    """One slow socket: its buffer has a bound of its own, apart from that of the shared queue."""
    layer = AsyncLayer(prefix, capacity=3)
    slow, other = await layer.new_channel(), await layer.new_channel()
    sent = 0
    for _ in range(4):
        for _ in range(2):
            await layer.send(slow, {"n": sent})
            sent += 1
        await layer.send(other, {})
        await layer.receive(other)
    assert drops(layer) == {DROP_REASONS[BUFFER]: sent - 3}
    assert drops_of(layer, slow.partition("!")[0] + "!") == sent - 3
    assert [(await layer.receive(slow))["n"] for _ in range(3)] == [0, 1, 2]
    await layer.close()


async def test_a_buffer_that_has_expired_takes_messages_again(prefix: str) -> None:
    """Upkeep empties the buffer of a socket that did not read. Later the socket reads again."""
    options: dict[str, Any] = {"capacity": 3, "channel_capacity": {"*.slow": 2}}
    layer, hasty = AsyncLayer(prefix, **options), AsyncLayer(prefix, expiry=0.1, **options)
    other = await layer.new_channel()
    slow = other + ".slow"
    for number in range(2):
        await hasty.send(slow, {"n": number})
    await layer.send(other, {})
    await layer.receive(other)  # drains what is there for both
    await asyncio.sleep(0.12)
    session = layer._core.attach()
    session.attachment.upkeep.check_at = session.attachment.due = 0.0
    await layer.group_channels("nobody")
    for number in range(5):
        await layer.send(slow, {"again": number})
        assert await asyncio.wait_for(layer.receive(slow), LIVENESS) == {"again": number}
    await layer.close()


def test_a_dead_owner(prefix: str, make: Callable[..., IPCChannelLayer]) -> None:
    layer = make(expiry=600)
    with owner_that_dies(prefix):
        for number in range(4):
            layer.send(f"x!{number}", {"n": number})
    upkeep_until(layer, lambda: drops(layer) == {DROP_REASONS[DEAD_OWNER]: 4})
    assert drops_of(layer, "x!") == 4


@contextmanager
def owner_that_dies(prefix: str) -> Iterator[None]:
    """A process that has received on ``x!`` once, and is killed when the block ends."""

    def own(line: Line) -> None:
        layer = IPCChannelLayer(prefix, expiry=600)
        layer.receive(["x!"])
        rests(line)

    with child(own) as process:
        process.hear()
        yield


def upkeep_until(layer: IPCChannelLayer, condition: Callable[[], bool]) -> None:
    def looked() -> bool:
        upkeep(layer)
        return condition()

    until(looked)


def test_counters_are_for_all_processes_and_go_with_a_flush(
    prefix: str, make: Callable[..., IPCChannelLayer]
) -> None:
    layer = make(capacity=1)
    layer.group_add("chat", "a")
    layer.send("a", {})
    in_child(lambda: IPCChannelLayer(prefix, capacity=1).send_group("chat", {}))
    assert drops(layer) == {DROP_REASONS[CAPACITY]: 1}
    layer.flush()
    assert drops(layer) == {}


# -- logged ---------------------------------------------------------------------------------------


class Clock:
    """`time` for the module that logs. The rest of the package uses the real one."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def test_at_most_one_line_in_ten_seconds(
    make: Callable[..., IPCChannelLayer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(asgi_ipc.attachment.drops, "clock", clock)
    layer = make(capacity=1)
    layer.group_add("chat", "a")
    layer.send("a", {})
    for _ in range(50):
        layer.send_group("chat", {})
    assert len(lines(caplog)) == 1
    clock.ahead = 9.0
    layer.send_group("chat", {})
    assert len(lines(caplog)) == 1
    clock.ahead = 10.5
    for _ in range(50):
        layer.send_group("chat", {})
    assert len(lines(caplog)) == 2
    assert drops(layer) == {DROP_REASONS[CAPACITY]: 101}
    assert all(record.levelno == logging.WARNING for record in caplog.records)


class Reasons:
    """Drops a message for any reason, as often as asked. Returns what the log line must name."""

    def __init__(self, prefix: str, make: Callable[..., IPCChannelLayer]) -> None:
        self.prefix = prefix
        self.layer = make(
            capacity=1,
            message_memory=65_536,
            max_message_size=4096,
            channel_capacity={"filler": 1_000_000},
            symmetric_encryption_keys=["ours"],
        )
        self.make = make
        self.layer.group_add("chat", "member")

    def capacity(self) -> list[str]:
        if not self.layer.channel_statistics("member")["messages_pending"]:
            self.layer.send("member", {})
        self.layer.send_group("chat", {})
        return ["'chat'", "'member'"]

    def memory(self) -> list[str]:
        with pytest.raises(ChannelFull):
            while True:
                self.layer.send("filler", {"pad": bytes(2500)})
        self.layer.send_group("chat", {"pad": bytes(2500)})
        return ["'chat'", "'member'"]

    def undecodable(self) -> list[str]:
        self.make(symmetric_encryption_keys=["theirs"]).send("locked", {})
        assert self.layer.receive(["locked"]) == (None, None)
        return ["'locked'"]

    def expired(self) -> list[str]:
        self.make(expiry=0.001).send("unread", {})
        time.sleep(0.002)
        assert self.layer.receive(["unread"]) == (None, None)
        return ["'unread'"]

    def dead_owner(self) -> list[str]:
        before = drops(self.layer).get("dead_owner", 0)
        with owner_that_dies(self.prefix):
            self.layer.send("x!1", {})
        upkeep_until(self.layer, lambda: drops(self.layer).get("dead_owner", 0) > before)
        return ["'x!'"]

    def buffer(self) -> list[str]:
        self.layer.receive(["y!"])
        inbox = self.layer._core.attach().attachment.inbox("y!")
        for number in range(3):  # a thread that waits for one name drains what is for another
            self.layer.send("y!slow", {"n": number})
            session = self.layer._core.attach()
            session.section(
                inbox.drain,
                session.store.queues.find(b"y!"),
                lambda local: 1,
                time.monotonic(),
            )
        upkeep(self.layer)
        while self.layer.receive(["y!"])[0]:
            pass
        return ["'y!slow'"]


@pytest.mark.parametrize("reason", DROP_REASONS)
def test_each_reason_is_logged_once_in_ten_seconds_with_names(
    prefix: str,
    make: Callable[..., IPCChannelLayer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    if reason == "undecodable":
        pytest.importorskip("cryptography", reason="lacking: cryptography")
    clock = Clock()
    monkeypatch.setattr(asgi_ipc.attachment.drops, "clock", clock)
    drop = getattr(Reasons(prefix, make), reason)
    for times in (1, 2):
        drop()
        names = drop()
        found = [line for line in lines(caplog) if reason in line]
        assert len(found) == times, found
        assert all(name in found[-1] and repr(prefix) in found[-1] for name in names), found
        clock.ahead += 10.5


def test_one_reason_does_not_silence_another(
    make: Callable[..., IPCChannelLayer], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("cryptography", reason="lacking: cryptography")
    layer = make(capacity=1, symmetric_encryption_keys=["ours"])
    layer.group_add("chat", "a")
    make(symmetric_encryption_keys=["theirs"]).send("a", {})
    layer.send_group("chat", {})
    layer.receive(["a"])
    found = lines(caplog)
    assert len(found) == 2
    assert "capacity" in found[0] and "undecodable" in found[1]


@pytest.mark.parametrize("how", ["receive", "upkeep"])
def test_expiry_is_logged(
    make: Callable[..., IPCChannelLayer], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    layer = make(expiry=0.05)
    for _ in range(3):
        layer.send("unread", {})
    time.sleep(0.06)
    if how == "upkeep":
        upkeep(layer)
    else:
        layer.receive(["unread"])
    (line,) = lines(caplog)
    assert "'unread'" in line and "expired" in line


def test_a_dead_owner_is_logged(
    prefix: str, make: Callable[..., IPCChannelLayer], caplog: pytest.LogCaptureFixture
) -> None:
    layer = make(expiry=600)
    with owner_that_dies(prefix):
        layer.send("x!1", {})
    upkeep_until(layer, lambda: bool(drops(layer)))
    (line,) = lines(caplog)
    assert "'x!'" in line and "dead" in line


async def test_a_full_buffer_is_logged(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    layer = AsyncLayer(prefix, capacity=1)
    slow, other = await layer.new_channel(), await layer.new_channel()
    for _ in range(3):
        await layer.send(slow, {})
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(layer.receive(other), 0.01)
    try:
        (line,) = lines(caplog)
        assert slow in line and "buffer" in line
    finally:
        await layer.close()
