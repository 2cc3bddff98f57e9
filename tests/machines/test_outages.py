"""The remote layer goes away and comes back, in all the ways of a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import errors
from asgi_ipc.machines import uplink

from ..waiting import LIVENESS, eventually
from .helpers import CORE, PUBSUB, reaches, receive, redis
from .servers import Server, servers, with_sentinel

pytest.importorskip("channels_redis", reason="lacking: channels_redis")

Make = Callable[..., Any]

every_backend = pytest.mark.parametrize("backend", [CORE, PUBSUB], ids=["core", "pubsub"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses that spare a real server."""
    monkeypatch.setattr(uplink, "_BEAT_EVERY", 0.05)
    monkeypatch.setattr(uplink, "_PATIENCE", 1.0)


async def local_traffic_goes_on(layer: Any, group: str, member: str) -> None:
    """Use everything that concerns only one machine a few times."""
    for number in range(3):
        await layer.send("thumbnails", {"number": number})
        assert await receive(layer, "thumbnails") == {"number": number}
        await layer.send(member, {"number": number})
        assert await receive(layer, member) == {"number": number}
        await layer.group_send(group, {"number": number})
        assert await receive(layer, member) == {"number": number}


@every_backend
async def test_a_server_that_is_killed_and_started_again_under_load(
    machine: Make, tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    with servers(tmp_path) as (server,):
        remote = redis(server, backend=backend)
        here, there = machine(1, remote, capacity=10_000), machine(2, remote, capacity=10_000)
        member, other, direct = [await layer.new_channel() for layer in (here, there, there)]
        await here.group_add("room", member)
        await there.group_add("room", other)
        sent = {"group": 0, "direct": 0}
        refused = 0
        stop = asyncio.Event()
        got: list[int] = []
        got_direct: list[int] = []

        async def load() -> None:
            nonlocal refused
            while not stop.is_set():
                sent["group"] += 1
                await here.group_send("room", {"number": sent["group"]})
                sent["direct"] += 1
                try:
                    await here.send(direct, {"number": sent["direct"]})
                except errors.RemoteUnavailable:
                    refused += 1
                await asyncio.sleep(0.001)

        async def read(channel: str, numbers: list[int]) -> None:
            while True:
                numbers.append((await there.receive(channel))["number"])

        reading = [
            asyncio.ensure_future(read(other, got)),
            asyncio.ensure_future(read(direct, got_direct)),
        ]
        loading = asyncio.ensure_future(load())

        async def flowing() -> bool:
            return len(got) > 100 and len(got_direct) > 100

        await eventually(flowing, what="messages to flow")
        server.kill()

        async def noticed() -> bool:
            return bool(refused and here.remote_statistics()["group_sends_lost"])

        await eventually(noticed, what="the outage to be noticed")
        assert "cannot be reached" in caplog.text
        there_member = await there.new_channel()
        await there.group_add("late", there_member)  # joined when the server is back
        await local_traffic_goes_on(there, "late", there_member)
        server.start()
        before = sent["group"], len(got), len(got_direct)

        async def flowing_again() -> bool:
            return len(got) > before[1] + 100 and len(got_direct) > before[2] + 100

        await eventually(flowing_again, what="messages to flow again")
        stop.set()
        await loading
        await reaches(here, "late", there, there_member)
        await eventually(lambda: arrived(got, sent["group"]), what="the last message")
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

        # At most once and in order; and nothing is lost after the server is back.
        for numbers in (got, got_direct):
            assert numbers == sorted(set(numbers))
        healed = next(number for number in got if number > before[0])
        assert got[got.index(healed) :] == list(range(healed, sent["group"] + 1))
        lost = sent["group"] - len(got)
        statistics = here.remote_statistics()
        # Also lost: messages that the server had when it was killed, and those that reached it
        # before the other machine had joined again.
        assert 0 < statistics["group_sends_lost"] <= lost
        assert statistics["sends_failed"] == refused


@every_backend
async def test_a_server_that_does_not_answer_holds_up_nobody(
    machine: Make, tmp_path: Path, impatient: None, backend: str
) -> None:
    """One call waits for its time-out; later calls fail at once, except one per second."""
    with servers(tmp_path) as (server,):
        remote = redis(server, backend=backend)
        here, there = machine(1, remote), machine(2, remote)
        member, other = await here.new_channel(), await there.new_channel()
        await here.group_add("room", member)
        await there.group_add("room", other)
        server.pause()
        with pytest.raises(errors.RemoteUnavailable, match="cannot be reached"):
            await here.send(other, {"text": "hello"})
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(errors.RemoteUnavailable):
                await here.send(other, {"text": "hello"})
        await local_traffic_goes_on(here, "room", member)
        assert time.monotonic() - began < 5 * 3.0  # a few time-outs, for 53 calls
        server.go_on()
        await reaches(here, "room", there, other)


@every_backend
async def test_a_server_that_has_forgotten_its_groups(
    machine: Make, tmp_path: Path, impatient: None, backend: str
) -> None:
    """So it is after a restart that no connection noticed."""
    with servers(tmp_path) as (server,):
        remote = redis(server, backend=backend)
        here, there = machine(1, remote), machine(2, remote)
        other = await there.new_channel()
        await there.group_add("room", other)
        await reaches(here, "room", there, other)
        if backend == CORE:
            server.ask("FLUSHALL")
        else:
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        await reaches(here, "room", there, other)


async def test_calls_before_the_server_is_started(machine: Make, tmp_path: Path) -> None:
    """A site may start before its Redis: groups work on the machine, and are joined later."""
    with servers(tmp_path) as (server,):
        server.kill()
        here, there = machine(1, redis(server)), machine(2, redis(server))
        member, other = await here.new_channel(), await there.new_channel()
        await here.group_add("room", member)
        await there.group_add("room", other)
        await local_traffic_goes_on(here, "room", member)
        with pytest.raises(errors.RemoteUnavailable):
            await here.flush()
        await here.group_add("room", member)
        server.start()
        await reaches(here, "room", there, other)


async def test_an_idle_machine_waits_through_time_outs(machine: Make, server: Server) -> None:
    """redis-py 8 raises TimeoutError from a read that gets nothing within its limit."""
    remote = redis(server)
    remote["CONFIG"]["hosts"] = [{"address": server.url, "socket_timeout": 0.2}]
    here, there = machine(1, redis(server)), machine(2, remote)
    channel = await there.new_channel()
    receiving = asyncio.ensure_future(there.receive(channel))
    await asyncio.sleep(1.0)  # idle for several time-outs
    await here.send(channel, {"text": "hello"})
    assert await asyncio.wait_for(receiving, LIVENESS) == {"text": "hello"}
    assert there._gateway.relay.elected


# -- sharding, encryption, Sentinel ----------------------------------------------------------------


@every_backend
async def test_two_shards(machine: Make, tmp_path: Path, impatient: None, backend: str) -> None:
    """Both carry sends and groups; each is killed and comes back empty."""
    with servers(tmp_path, 2) as both:
        remote = redis(*both, backend=backend)
        here, there = machine(1, remote), machine(2, remote)
        rooms = [f"room-{number}" for number in range(10)]
        others = {room: await there.new_channel() for room in rooms}
        for room, other in others.items():
            await there.group_add(room, other)
            await here.group_send(room, {"room": room})
            await here.send(other, {"to": other})
            # In any order: the group and the machine may be on different shards.
            got = [await receive(there, other), await receive(there, other)]
            assert sorted(got, key=str) == [{"room": room}, {"to": other}]
        if backend == CORE:
            assert all("asgi:group:room-" in server.ask("KEYS", "*") for server in both)
        for server in both:
            server.kill()
            server.start()
            for room, other in others.items():
                await reaches(here, room, there, other)


async def test_messages_are_encrypted_with_the_keys_of_the_remote_layer(
    machine: Make, server: Server
) -> None:
    remote = redis(server, symmetric_encryption_keys=["a secret of this site"])
    here, there = machine(1, remote), machine(2, remote)
    channel = await there.new_channel()
    await there.send(channel, {"text": "first"})  # so that its relay is connected
    assert await receive(there, channel) == {"text": "first"}
    await there.close()
    await here.send(channel, {"text": "nobody may read this"})
    (key,) = [key for key in server.ask("KEYS", "*").split() if key.endswith("!")]
    stored = server.ask("ZRANGE", key, "0", "-1")
    assert "gAAAAA" in stored and "nobody may read this" not in stored


@every_backend
async def test_a_failover_in_the_middle_of_traffic(
    machine: Make, tmp_path: Path, impatient: None, backend: str
) -> None:
    """The master dies, and Sentinel promotes the replica. Nothing tells the layer; it goes on."""
    with with_sentinel(tmp_path) as (master, replica, sentinel):
        remote = redis(backend=backend)
        remote["CONFIG"]["hosts"] = [
            {"sentinels": [("127.0.0.1", sentinel.port)], "master_name": "chat"}
        ]
        here, there = machine(1, remote, capacity=10_000), machine(2, remote, capacity=10_000)
        other = await there.new_channel()
        await there.group_add("room", other)
        await reaches(here, "room", there, other)
        stop = asyncio.Event()
        sent = 0
        got: list[int] = []

        async def load() -> None:
            nonlocal sent
            while not stop.is_set():
                sent += 1
                await here.group_send("room", {"number": sent})
                await asyncio.sleep(0.001)

        async def read() -> None:
            while True:
                got.append((await there.receive(other))["number"])

        loading, reading = asyncio.ensure_future(load()), asyncio.ensure_future(read())

        async def more(than: int) -> bool:
            return len(got) > than

        await eventually(lambda: more(100), what="messages to flow")
        master.kill()
        before = len(got)
        await eventually(lambda: more(before + 100), what="messages to flow after the failover")
        assert str(replica.port) in sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "chat")
        stop.set()
        await loading
        await eventually(lambda: arrived(got, sent), what="the last message")
        reading.cancel()
        assert got == sorted(set(got))


async def arrived(got: list[int], number: int) -> bool:
    return bool(got) and got[-1] == number
