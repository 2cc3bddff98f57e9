"""How a machine deals with a remote layer that misbehaves. No server is needed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asgi_ipc import LocalAndRemoteChannelLayer as BlockingLayer
from asgi_ipc import errors, segment
from asgi_ipc.aio import IPCChannelLayer, LocalAndRemoteChannelLayer
from asgi_ipc.machines import backend, uplink
from asgi_ipc.machines.backend import Backend, Caller
from asgi_ipc.machines.directory import attach, machine_group, machine_id
from asgi_ipc.machines.figures import Figures
from asgi_ipc.machines.incoming import Incoming
from asgi_ipc.segment.files import Descriptor

from ..waiting import LIVENESS, eventually
from .helpers import nothing_waits, reaches, receive

Make = Callable[..., Any]
THREADS, EACH = 6, 40  # messages of each thread


def remote(name: str, prefix: str) -> dict[str, Any]:
    return {"BACKEND": f"tests.machines.layers.{name}", "CONFIG": {"prefix": prefix}}


async def test_what_the_remote_layer_doubles_arrives_once(machine: Make, prefix: str) -> None:
    config = remote("Doubling", prefix)
    here, there = machine(1, config), machine(2, config)
    channel = await there.new_channel()
    await there.group_add("room", channel)
    for number in range(20):
        await here.group_send("room", {"number": number})
        await here.send(channel, {"number": number + 0.5})
    got = [(await receive(there, channel))["number"] for _ in range(40)]
    assert got == [number / 2 for number in range(40)]
    assert await nothing_waits(there, channel)
    assert there.remote_statistics()["duplicates"] >= 40


async def test_nothing_that_comes_in_ends_the_relay(machine: Make, prefix: str) -> None:
    """Neither messages of another program, nor of another version of this one."""
    config = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": prefix}}
    here, there = machine(1, config), machine(2, config)
    channel = await there.new_channel()
    stranger = IPCChannelLayer(prefix=prefix)
    group = machine_group(machine_id(await attach(there._local)))
    header = {"asgi_ipc": "send", "id": "1", "from": "somebody"}
    for message in (
        {"type": "chat.message"},
        {**header, "id": "2"},
        {**header, "id": ["3"], "channel": channel, "message": {}},
        {**header, "id": "4", "channel": "not a name", "message": {}},
        {**header, "id": "5", "channel": channel, "message": "no dict"},
        {**header, "id": "6", "asgi_ipc": "of tomorrow"},
    ):
        await stranger.group_send(group, message)
    await here.send(channel, {"text": "hello"})
    assert await receive(there, channel) == {"text": "hello"}
    assert there.remote_statistics()["undeliverable"] == 6
    await stranger.close()


async def test_a_receive_that_fails_is_begun_again(
    machine: Make, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "_RETRY_AFTER", 0.01)
    config = remote("Failing", prefix)
    here, there = machine(1, config), machine(2, config)
    channel = await there.new_channel()
    await there.group_add("room", channel)
    for _ in range(5):
        await reaches(here, "room", there, channel)


async def test_a_successor_does_not_deliver_what_its_predecessor_had_in_its_hands(
    prefix: str,
) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    figures = Figures(prefix)
    header = {"asgi_ipc": "send", "from": "another machine", "channel": "c"}
    with tempfile.TemporaryFile() as memory:
        for numbers in (("1", "2"), ("2", "3")):
            incoming = Incoming(layer, layer, figures)
            incoming.memory = Descriptor(os.dup(memory.fileno()))
            incoming.recall()
            for number in numbers:
                envelope = {**header, "id": number, "message": {"number": number}}
                await incoming.deliver("this machine", envelope, None)
    assert [(await receive(layer, "c"))["number"] for _ in range(3)] == ["1", "2", "3"]
    assert figures.counts["duplicates"] == 1
    await layer.close()


async def test_while_it_fails_one_call_in_a_while_tries(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from . import layers

    monkeypatch.setattr(layers.Unreachable, "fails", True)
    monkeypatch.setattr(layers.Unreachable, "asked", 0)
    monkeypatch.setattr(backend, "_RETRY_AFTER", 3600.0)
    caller = Caller(Backend(remote("Unreachable", prefix)), timeout=5)
    for _ in range(10):
        with pytest.raises(errors.RemoteUnavailable, match="connection refused"):
            await caller.call("group_send", "room", {})
    assert layers.Unreachable.asked == 1
    caller._closed_until = 0.0  # an hour later
    layers.Unreachable.fails = False
    await caller.call("group_send", "room", {})
    await caller.call("group_send", "room", {})
    assert layers.Unreachable.asked == 3
    await caller.close()


async def test_a_layer_that_is_merely_dropped_leaves_no_thread(prefix: str) -> None:
    config = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": f"{prefix}-remote"}}
    before = threading.active_count()
    layer = LocalAndRemoteChannelLayer(config, {"prefix": prefix})
    await layer.group_add("room", "c")
    assert threading.active_count() == before + 1
    del layer

    async def gone() -> bool:
        gc.collect()
        return threading.active_count() == before

    await eventually(gone, what="the thread to end")
    segment.destroy(f"{prefix}-remote")


async def test_many_loops_use_one_layer(machine: Make, prefix: str) -> None:
    """Each call of async_to_sync has its own loop, but the connection to the server has one."""
    config = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": prefix}}
    here, there = machine(1, config), machine(2, config)
    channel = await there.new_channel()
    await there.group_add("room", channel)
    for number in range(5):
        await asyncio.to_thread(asyncio.run, here.group_send("room", {"number": number}))
    assert [(await receive(there, channel))["number"] for _ in range(5)] == list(range(5))


async def test_threads_share_a_layer_and_each_message_arrives_once(
    machine: Make, prefix: str
) -> None:
    """No two messages have one number: the second would be dropped as a duplicate."""
    config = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": prefix}}
    there = machine(2, config, capacity=10_000)
    channel = await there.new_channel()
    here = BlockingLayer(config, {"prefix": f"{prefix}-1"}, remote_timeout=LIVENESS)
    together = threading.Barrier(THREADS)

    def send(sender: int) -> None:
        together.wait(LIVENESS)
        for number in range(EACH):
            here.send(channel, {"sender": sender, "number": number})

    try:
        await asyncio.gather(*(asyncio.to_thread(send, sender) for sender in range(THREADS)))
        got = [await receive(there, channel) for _ in range(THREADS * EACH)]
    finally:
        await asyncio.to_thread(here.close)
        segment.destroy(f"{prefix}-1")
    for sender in range(THREADS):
        numbers = [message["number"] for message in got if message["sender"] == sender]
        assert numbers == list(range(EACH))
    assert there.remote_statistics()["relayed"] == THREADS * EACH
    assert there.remote_statistics()["duplicates"] == 0


async def test_what_threads_lose_at_once_is_all_counted(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from . import layers

    monkeypatch.setattr(layers.Unreachable, "fails", True)
    here = BlockingLayer(remote("Unreachable", f"{prefix}-remote"), {"prefix": prefix})
    together = threading.Barrier(THREADS)

    def send() -> None:
        together.wait(LIVENESS)
        for _ in range(EACH):
            here.send_group("room", {})

    try:
        await asyncio.gather(*(asyncio.to_thread(send) for _ in range(THREADS)))
        assert here.remote_statistics()["group_sends_lost"] == THREADS * EACH
    finally:
        await asyncio.to_thread(here.close)
        segment.destroy(prefix)


async def test_a_layer_that_another_thread_closes_goes_on_and_raises_its_own_errors(
    machine: Make, prefix: str
) -> None:
    config = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": prefix}}
    there = machine(2, config, capacity=10_000)
    channel = await there.new_channel()
    here = BlockingLayer(config, {"prefix": f"{prefix}-1"}, remote_timeout=LIVENESS)
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            with contextlib.suppress(errors.RemoteUnavailable):
                here.send(channel, {})
                here.new_channel()

    def close() -> None:
        try:
            for _ in range(10):
                here.close()
        finally:
            over.set()

    try:
        await asyncio.gather(*map(asyncio.to_thread, (send, send, close)))
        await asyncio.to_thread(here.send, channel, {"after": "all"})
        while (await receive(there, channel)) != {"after": "all"}:
            pass
        mine = await asyncio.to_thread(here.new_channel)
        await there.send(mine, {"back": 1})
        assert await asyncio.to_thread(here.receive, [mine], True, LIVENESS) == (mine, {"back": 1})
    finally:
        await asyncio.to_thread(here.close)
        segment.destroy(f"{prefix}-1")


async def test_what_was_confirmed_before_a_close_is_asked_again(
    machine: Make, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes the layer between the relay's answer and the call that notes it."""
    config = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": prefix}}
    here, there = machine(1, config), machine(2, config)
    ask = here._gateway.ask

    async def ask_and_close(request: Any) -> None:
        await ask(request)
        await asyncio.to_thread(here._gateway.stop)

    monkeypatch.setattr(here._gateway, "ask", ask_and_close)
    await here.new_channel()
    monkeypatch.undo()
    mine = await here.new_channel()
    await there.send(mine, {"back": 1})
    assert await receive(here, mine) == {"back": 1}


async def test_a_relay_is_asked_in_its_own_loop_only(
    machine: Make, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a call that another thread's close has moved to a new loop uses locks of the old one."""
    config = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": prefix}}
    here = machine(1, config)
    await here.new_channel()
    relay = here._gateway.relay
    assert relay.elected
    handle, loops = relay.handle, []

    async def noted(request: Any) -> str:
        loops.append(asyncio.get_running_loop())
        return str(await handle(request))

    monkeypatch.setattr(relay, "handle", noted)
    # This loop stands for the new one.
    assert await here._gateway._ask({"do": "ready", "group": ""}) == ""
    assert loops == [relay.loop] != [asyncio.get_running_loop()]


GOOD = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": "remote"}}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("channels_redis.core.RedisChannelLayer",), "must be a dict"),
        (({"CONFIG": {}},), "must be a dict"),
        (({"BACKEND": "no.such.module.Layer"},), "cannot be imported"),
        (({"BACKEND": "asgi_ipc.aio.NoSuchLayer"},), "cannot be imported"),
        (({"BACKEND": "nodots"},), "cannot be imported"),
        (({**GOOD, "TIMEOUT": 5},), "unknown keys"),
        (({**GOOD, "CONFIG": ["redis"]},), "must be a dict"),
        (({**GOOD, "CONFIG": {"hots": []}},), "unknown option 'hots'"),
        ((GOOD, "mysite"), "local must be a dict"),
        ((GOOD, {"prefixx": "mysite"}), "unknown option 'prefixx'"),
        ((GOOD, {"channel_capacity": 5}), "channel_capacity must be a dict"),
        ((GOOD, {}, 0), "remote_timeout"),
        ((GOOD, {}, "5"), "remote_timeout"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_at_once(
    arguments: tuple[Any, ...], says: str
) -> None:
    from asgi_ipc import LocalAndRemoteChannelLayer as Blocking

    for layer in (LocalAndRemoteChannelLayer, Blocking):
        with pytest.raises(errors.InvalidOption, match=says):
            layer(*arguments)
