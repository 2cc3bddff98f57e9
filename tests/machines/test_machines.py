"""Messages between two machines, which are two prefixes, over one real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asgi_ipc import errors

from ..waiting import LIVENESS, eventually
from .helpers import (
    CORE,
    OURS,
    PUBSUB,
    VALKEY_PUBSUB,
    nothing_waits,
    receive,
    redis,
)
from .servers import Server

pytest.importorskip("channels_redis", reason="lacking: channels_redis")

Make = Callable[..., Any]

every_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(CORE, id="core"),
        pytest.param(PUBSUB, id="pubsub"),
        pytest.param(VALKEY_PUBSUB, id="valkey-pubsub"),
        pytest.param(OURS, id="asgi_ipc"),
    ],
)


@pytest.fixture
def pair(machine: Make, server: Server, prefix: str) -> Callable[..., tuple[Any, Any]]:
    """Two layers on two machines."""

    def make(backend: str = CORE, **options: Any) -> tuple[Any, Any]:
        if backend == OURS:
            remote: dict[str, Any] = {"BACKEND": OURS, "CONFIG": {"prefix": prefix}}
        else:
            remote = redis(server, backend=backend)
        return machine(1, remote, **options), machine(2, remote, **options)

    return make


@every_backend
async def test_a_process_specific_channel_is_reached_from_another_machine(
    pair: Any, backend: str
) -> None:
    here, there = pair(backend)
    channel = await there.new_channel()
    for number in range(50):
        await here.send(channel, {"number": number})
    assert [(await receive(there, channel))["number"] for _ in range(50)] == list(range(50))


@every_backend
async def test_a_group_reaches_each_member_on_each_machine_once(pair: Any, backend: str) -> None:
    here, there = pair(backend)
    members = [(layer, await layer.new_channel()) for layer in (here, there) for _ in range(3)]
    for layer, channel in members:
        await layer.group_add("room", channel)
    for number in range(20):
        await here.group_send("room", {"number": number})
    for layer, channel in members:
        got = [(await receive(layer, channel))["number"] for _ in range(20)]
        assert got == list(range(20))
        assert await nothing_waits(layer, channel)


@every_backend
async def test_a_member_that_left_a_group_gets_nothing(pair: Any, backend: str) -> None:
    here, there = pair(backend)
    stays, leaves = await there.new_channel(), await there.new_channel()
    for channel in (stays, leaves):
        await there.group_add("room", channel)
    await there.group_discard("room", leaves)
    await here.group_send("room", {"text": "hello"})
    assert await receive(there, stays) == {"text": "hello"}
    assert await nothing_waits(there, leaves)


async def test_normal_channels_stay_on_their_machine(pair: Any, server: Server) -> None:
    here, there = pair()
    await here.receive_async(["thumbnails"], timeout=0.01)
    server.ask("CONFIG", "RESETSTAT")
    for layer, text in ((here, "here"), (there, "there")):
        await layer.send("thumbnails", {"text": text})
    assert await receive(there, "thumbnails") == {"text": "there"}
    assert await receive(here, "thumbnails") == {"text": "here"}


async def test_what_is_local_does_not_go_through_redis(pair: Any, server: Server) -> None:
    """No local message needs the server, which is stopped."""
    here, _ = pair()
    channel = await here.new_channel()
    await here.group_add("room", channel)
    server.pause()
    try:
        await here.send(channel, {"text": "mine"})
        assert await receive(here, channel) == {"text": "mine"}
        await here.send("thumbnails", {"text": "ours"})
        assert await receive(here, "thumbnails") == {"text": "ours"}
    finally:
        server.go_on()


@pytest.mark.parametrize("members", [1, 300])
async def test_a_group_send_is_one_message_for_each_machine(
    machine: Make, server: Server, members: int
) -> None:
    """The number of sockets and of processes on a machine makes no difference."""
    remote = redis(server)
    layers = [machine(1, remote), machine(2, remote), machine(2, remote), machine(3, remote)]
    channels = []
    for layer in layers:
        for _ in range(members):
            channels.append((layer, await layer.new_channel()))
            await layer.group_add("room", channels[-1][1])
    relays = [layer for layer in layers if layer._gateway.relay.elected]
    assert len(relays) == 3
    before = [layer.remote_statistics()["relayed"] for layer in relays]
    for _ in range(10):
        await layers[0].group_send("room", {"text": "hello"})
    for layer, channel in channels:
        for _ in range(10):
            assert await receive(layer, channel) == {"text": "hello"}

    async def counted() -> Any:  # the relay counts a message after it has sent it on
        after = [layer.remote_statistics()["relayed"] for layer in relays]
        relayed = sorted(now - then for now, then in zip(after, before))
        return relayed if sum(relayed) >= 20 else None

    assert await eventually(counted, what="20 messages to be counted") == [0, 10, 10]


@every_backend
async def test_a_channel_of_another_machine_joins_and_leaves_a_group(
    pair: Any, backend: str
) -> None:
    here, there = pair(backend)
    channel = await there.new_channel()
    await here.group_add("room", channel)

    async def joined() -> bool:
        return bool(await there.group_channels("room") == [channel])

    await eventually(joined, what="the other machine to add it")
    await here.group_send("room", {"text": "hello"})
    assert await receive(there, channel) == {"text": "hello"}
    await here.group_discard("room", channel)

    async def left() -> bool:
        return not await there.group_channels("room")

    await eventually(left, what="the other machine to discard it")


async def test_a_full_channel_of_another_machine_drops_and_counts(pair: Any) -> None:
    """Only its home knows that it is full, when the sender of a message no longer waits."""
    here, there = pair(capacity=3)
    channel = await there.new_channel()
    for number in range(5):
        await here.send(channel, {"number": number})

    async def two_dropped() -> bool:
        return bool(there.remote_statistics()["undeliverable"] == 2)

    await eventually(two_dropped, what="two messages without room")
    assert [(await receive(there, channel))["number"] for _ in range(3)] == [0, 1, 2]


async def test_a_machine_that_is_off_fills_up_and_its_senders_are_told(
    machine: Make, server: Server
) -> None:
    remote = redis(server, channel_capacity={"asgi_ipc.*": 3})
    here, there = machine(1, remote), machine(2, remote)
    channel = await there.new_channel()
    await there.close()
    for number in range(3):
        await here.send(channel, {"number": number})
    with pytest.raises(here.ChannelFull, match="another machine"):
        await here.send(channel, {"number": 3})


async def test_a_message_for_another_machine_is_held_to_the_same_rules(pair: Any) -> None:
    here, there = pair(max_message_size=1024)
    channel = await there.new_channel()
    with pytest.raises(errors.InvalidMessage, match=r"message\['when'\]"):
        await here.send(channel, {"when": object()})
    with pytest.raises(here.MessageTooLarge):
        await here.send(channel, {"text": "x" * 2000})
    assert await nothing_waits(there, channel)


@every_backend
async def test_flush_reaches_the_other_machines(pair: Any, backend: str) -> None:
    here, there = pair(backend)
    channel = await there.new_channel()
    await there.group_add("room", channel)
    await there.send("thumbnails", {"text": "old"})
    await here.flush()

    async def empty() -> bool:
        return not await there.group_channels("room")

    await eventually(empty, what="the other machine to be empty")
    await there.send("thumbnails", {"text": "new"})
    assert await receive(there, "thumbnails") == {"text": "new"}


async def test_nothing_that_was_under_way_comes_after_a_flush(pair: Any) -> None:
    here, there = pair()
    channel = await there.new_channel()
    for number in range(50):
        await here.send(channel, {"number": number})
    await there.flush()
    assert await nothing_waits(there, channel)


async def test_a_group_of_which_nobody_is_left_is_left_in_redis(
    pair: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asgi_ipc.machines import uplink

    monkeypatch.setattr(uplink, "_TIDY_EVERY", 0.2)
    monkeypatch.setattr(uplink, "_BEAT_EVERY", 0.1)
    here, _ = pair()
    channel = await here.new_channel()
    await here.group_add("room", channel)
    assert ":1" in server.ask("EXISTS", "asgi:group:room")
    await here.group_discard("room", channel)

    async def gone() -> bool:
        return ":0" in server.ask("EXISTS", "asgi:group:room")

    await eventually(gone, what="the machine to leave the group in Redis")
    await here.group_add("room", channel)


# -- channels whose names do not contain their machine ---------------------------------------------


@every_backend
async def test_a_made_up_single_reader_channel_is_found_where_it_is_read(
    pair: Any, backend: str
) -> None:
    here, there = pair(backend)
    reading = asyncio.ensure_future(there.receive("reply?abc"))

    async def registered() -> bool:
        return bool(there._gateway.confirmed)

    await eventually(registered, what="the reader to be known")
    await here.send("reply?abc", {"number": 1})
    assert await asyncio.wait_for(reading, LIVENESS) == {"number": 1}

    async def learned() -> bool:
        home, own = await here._find_home("reply?abc")
        return bool(home and home != own)

    await eventually(learned, what="the answer of the other machine")
    await here.send("reply?abc", {"number": 2})
    assert await receive(there, "reply?abc") == {"number": 2}


async def test_a_made_up_channel_that_is_read_here_needs_no_redis(
    pair: Any, server: Server
) -> None:
    here, _ = pair()
    await here.send("reply?abc", {"number": 1})
    assert await receive(here, "reply?abc") == {"number": 1}
    server.pause()
    try:
        await here.send("reply?abc", {"number": 2})
        assert await receive(here, "reply?abc") == {"number": 2}
    finally:
        server.go_on()


async def test_a_single_reader_channel_of_another_machine_is_not_received(pair: Any) -> None:
    here, there = pair()
    machine, _, _ = (await there.new_channel()).removeprefix("specific.").partition(".")
    with pytest.raises(errors.NotOwner, match="another machine"):
        await here.receive(f"reply?{machine}.{'0' * 16}")


async def test_unread_channels_names_what_has_no_worker(pair: Any) -> None:
    here, _ = pair()
    await here.send("thumbnails", {"text": "hello"})
    await here.send("reply?abc", {"text": "hello"})
    waiting = asyncio.ensure_future(here.receive("mail"))

    async def named() -> Any:
        return await here.unread_channels(seconds=0)

    assert await eventually(named, what="the channel to be seen") == ["thumbnails"]
    waiting.cancel()
