"""A process with many channels in groups dies: its messages and memberships go within the expiry,
and nobody sends to the dead meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import NotOwner
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import DEAD_OWNER, S_DROPS

from ..environments import child_environment
from ..processes import Process, running
from ..waiting import LIVENESS, eventually, until

EXPIRY = 1.5  # seconds
CHANNELS = 1000

# A server with many sockets: all in one group, some in another.
SERVER = """
import asyncio, sys, asgi_ipc.aio
prefix, channels, expiry = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
layer = asgi_ipc.aio.IPCChannelLayer(prefix, expiry=expiry, capacity=10_000)
async def main():
    names = [await layer.new_channel() for _ in range(channels)]
    for number, name in enumerate(names):
        await layer.group_add("all", name)
        if number < 50:
            await layer.group_add(f"one{number % 10}", name)
    waiting = asyncio.ensure_future(layer.receive(names[0]))
    await asyncio.sleep(0)
    await layer.send("up", {"names": names[:3]})
    await waiting
    await layer.send("got", {})
    await asyncio.sleep(1000)
asyncio.run(main())
"""

# A worker of Channels 1 that listens on many queues of its own, each a member of the group.
WORKER = """
import sys, time, asgi_ipc
prefix, channels, expiry = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
layer = asgi_ipc.IPCChannelLayer(prefix, expiry=expiry)
names = [f"own{number}!" for number in range(channels)]
for name in names:
    layer.receive([name])
    layer.group_add("all", name + "x")
layer.send("up", {"names": [name + "x" for name in names[:3]]})
time.sleep(1000)
"""


@pytest.fixture
def layer(prefix: str) -> Iterator[Any]:
    made = asgi_ipc.IPCChannelLayer(
        prefix, expiry=EXPIRY, receive_timeout=LIVENESS, capacity=10_000
    )
    yield made
    made.close()


@contextlib.contextmanager
def started(source: str, layer: Any, log: Path, channels: int) -> Iterator[tuple[Process, Any]]:
    arguments = [sys.executable, "-c", source, layer.prefix, str(channels), str(EXPIRY)]
    with running(arguments, log=log, environment=child_environment()) as process:
        process.wait_until(
            lambda: layer.channel_statistics("up")["messages_pending"], "it to be up"
        )
        yield process, layer.receive(["up"])[1]["names"]


def plan_of(layer: Any, group: str) -> list[Any]:
    """The targets of a broadcast: each gets one record."""
    session = layer._core.attach()
    targets: list[Any] = session.section(
        layer._core._plan, session, group.encode(), time.monotonic()
    )
    return targets


def kill(process: Process) -> float:
    os.kill(process.pid, signal.SIGKILL)
    process.wait_for_end()
    return time.monotonic()


def gone(layer: Any, group: str = "all") -> bool:
    return layer.group_channels(group) == []


def test_memberships_go_with_their_process(layer: Any, tmp_path: Path) -> None:
    with started(SERVER, layer, tmp_path / "log", CHANNELS) as (process, names):
        assert len(layer.group_channels("all")) == CHANNELS
        targets = plan_of(layer, "all")
        assert len(targets) == 1  # a thousand sockets of one process are one record
        assert targets[0].local_parts.count(b",") == CHANNELS - 1
        died = kill(process)
        until(lambda: gone(layer))
        print(f"{CHANNELS} memberships were gone {time.monotonic() - died:.2f} s after the death")
        assert all(gone(layer, f"one{number}") for number in range(10))
        before = layer.global_statistics()["messages_count"]
        layer.send_group("all", MESSAGE)
        assert layer.global_statistics()["messages_count"] == before
        # The rows are freed too, not only hidden.
        members = layer._core.session.store.members
        until(lambda: (layer.receive(["none"]), members.used == 0)[1])
        assert plan_of(layer, "all") == []


def test_queue_of_the_dead_is_dropped_and_counted(layer: Any, tmp_path: Path) -> None:
    """However long it is, and long before its messages expire."""
    count = 2000
    sender = asgi_ipc.IPCChannelLayer(layer.prefix, capacity=10_000)
    with started(SERVER, layer, tmp_path / "log", 10) as (process, names):
        process.pause()
        for _ in range(count):
            sender.send(names[1], MESSAGE)
        died = kill(process)
    queue = names[1].partition("!")[0] + "!"
    words = layer._core.session.store.words
    assert layer.channel_statistics(queue)["messages_pending"] == count
    until(lambda: (layer.receive(["none"]), words[S_DROPS + DEAD_OWNER] == count)[1])
    print(f"{count} messages were dropped {time.monotonic() - died:.2f} s after the death")
    assert layer.channel_statistics(queue)["messages_pending"] == 0


def test_doorbells_of_the_dead_are_removed(layer: Any, tmp_path: Path) -> None:
    directory = Path(Paths(layer.prefix).directory)
    with started(SERVER, layer, tmp_path / "log", 1) as (process, names):
        layer.send(names[0], MESSAGE)
        assert layer.receive(["got"], block=True) == ("got", {})
        before = sorted(path.name for path in directory.iterdir() if path.is_fifo())
        kill(process)
    mine = f".{layer._core.session.attachment.local.waiter.waiter_id}."
    assert [mine in name for name in before].count(True) == 1 and len(before) == 2
    until(
        lambda: (
            layer.receive(["none"]),
            [mine in path.name for path in directory.iterdir() if path.is_fifo()] == [True],
        )[1],
    )


def test_broadcasts_do_not_slow_down_because_of_the_dead(layer: Any, tmp_path: Path) -> None:
    """Five processes die one after another. A broadcast never makes more records than there are
    processes that live or died within the expiry; in the end, as many as live."""
    with started(SERVER, layer, tmp_path / "alive", 100) as (alive, names):
        for number in range(5):
            with started(SERVER, layer, tmp_path / f"log{number}", 100) as (process, _):
                assert len(plan_of(layer, "all")) >= 2
                kill(process)
        until(lambda: (layer.receive(["none"]), len(plan_of(layer, "all")) == 1)[1])
        assert len(layer.group_channels("all")) == 100
        assert set(names) <= set(layer.group_channels("all"))
        before = layer.global_statistics()["messages_count"]
        layer.send_group("all", MESSAGE)
        assert layer.receive(["got"], block=True) == ("got", {})
        # One record to the living process, and its answer.
        assert layer.global_statistics()["messages_count"] == before + 2
        assert alive.alive()


def test_sender_with_a_plan_of_its_own_learns_of_the_death(layer: Any, tmp_path: Path) -> None:
    """A plan is kept while the group does not change. A death ends it, however many broadcasts are
    sent to the dead meanwhile."""
    with started(SERVER, layer, tmp_path / "log", CHANNELS) as (process, _):
        layer.send_group("all", MESSAGE)
        kill(process)
        count = layer.global_statistics()["messages_count"]

        def sends_nothing() -> bool:
            before = layer.global_statistics()["messages_count"]
            layer.send_group("all", MESSAGE)
            return bool(layer.global_statistics()["messages_count"] == before)

        until(sends_nothing)
        assert layer.global_statistics()["messages_count"] >= count
        assert gone(layer)


def test_many_queues_of_one_process(layer: Any, tmp_path: Path) -> None:
    """A thousand queues; the sockets of a server share one."""
    with started(WORKER, layer, tmp_path / "log", CHANNELS) as (process, names):
        assert len(layer.group_channels("all")) == CHANNELS
        process.pause()
        layer.send_group("all", MESSAGE)
        words = layer._core.session.store.words
        died = kill(process)
        until(lambda: gone(layer))
        print(f"{CHANNELS} queues were gone {time.monotonic() - died:.2f} s after the death")
        # One message in each queue: dropped because of the death, or because it expired.
        until(lambda: layer.global_statistics()["messages_pending"] == 0)
        assert sum(words[S_DROPS : S_DROPS + 8].tolist()) >= CHANNELS


def test_name_of_a_dead_process_is_free_again(layer: Any, tmp_path: Path) -> None:
    """A restarted worker can use the name of the one that died at once."""
    with started(WORKER, layer, tmp_path / "log", 1) as (process, names):
        with pytest.raises(NotOwner):
            layer.receive(["own0!"])
        kill(process)
    assert layer.receive(["own0!"]) == (None, None)
    layer.send(names[0], MESSAGE)
    assert layer.receive(["own0!"]) == (names[0], MESSAGE)


def test_dead_process_is_seen_without_any_call(layer: Any, tmp_path: Path) -> None:
    """A process that only waits clears up after the dead, too."""

    async def wait() -> None:
        from asgi_ipc.aio import IPCChannelLayer

        aio = IPCChannelLayer(layer.prefix, expiry=EXPIRY)
        waiting = asyncio.ensure_future(aio.receive("never"))
        with started(SERVER, layer, tmp_path / "log", 10) as (process, _):
            kill(process)
        store = layer._core.session.store

        async def gone() -> bool:
            return not store.members.used  # a look at the memory, which does no upkeep

        await eventually(gone)
        waiting.cancel()
        await asyncio.wait([waiting])
        await aio.close()

    asyncio.run(wait())
