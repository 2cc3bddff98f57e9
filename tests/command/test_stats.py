"""``layer.stats()``: what ``asgi-ipc stats`` shows, as a dataclass, on both layers."""

from __future__ import annotations

import dataclasses
import os
import threading
import time

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc import aio as asgi_ipc_aio
from asgi_ipc.attachment.process import attached_processes
from asgi_ipc.errors import SegmentVanished
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.view import View
from asgi_ipc.statistics import Stats
from asgi_ipc.store.layout import DROP_REASONS

from ..forks import bounded, child, rests
from ..waiting import LIVENESS
from .conftest import Live, Run, stopped_holder


def test_both_layers_and_the_command_say_the_same(live: Live, run: Run) -> None:
    import asyncio

    printed = run("stats", "--interval", "0", "--json").json
    blocking = dataclasses.asdict(IPCChannelLayer(live.prefix).stats())
    waiting = dataclasses.asdict(asyncio.run(asgi_ipc_aio.IPCChannelLayer(live.prefix).stats()))
    assert blocking.keys() == printed.keys() == waiting.keys()
    for name in ("pending", "sent", "refused", "dropped", "groups", "memberships", "recoveries"):
        assert blocking[name] == waiting[name] == printed[name]
    assert blocking["memory"] == waiting["memory"]
    # The two layers here share an attachment.
    assert blocking["processes"] == waiting["processes"] == printed["processes"] + 1


def test_of_a_new_layer(prefix: str) -> None:
    found = IPCChannelLayer(prefix).stats()
    assert isinstance(found, Stats)
    assert (found.pending, found.sent, found.oldest, found.channels) == (0, 0, 0.0, 0)
    assert found.dropped == dict.fromkeys(DROP_REASONS, 0)
    assert found.memory.in_use == 0 and found.processes == 1


def test_drops_by_reason_and_refusals(prefix: str) -> None:
    layer = IPCChannelLayer(prefix, capacity=1)
    layer.group_add("g", "a")
    layer.send_group("g", {})
    layer.send_group("g", {})
    with pytest.raises(layer.ChannelFull):
        layer.send("a", {})
    found = layer.stats()
    assert (found.dropped["capacity"], found.sent, found.refused) == (1, 1, 2)
    (channel,) = Snapshot(View(prefix)).channels()
    assert (channel.refused, channel.capacity, channel.fill) == (2, 1, 1.0)
    assert channel.dropped == {**dict.fromkeys(DROP_REASONS, 0), "capacity": 1}


def test_memory_in_use_and_its_high_water(prefix: str) -> None:
    layer = IPCChannelLayer(prefix, message_memory=8 << 20)
    for _ in range(10):
        layer.send("a", {"body": b"x" * 100_000})
    layer.global_statistics()  # a round of upkeep, as there is one ten times a second
    full = layer.stats().memory
    assert full.limit == 8 << 20 and full.in_use > 1_000_000
    assert full.in_use <= full.reserved <= full.size
    while layer.receive(["a"])[0]:
        pass
    empty = layer.stats().memory
    assert empty.in_use == 0
    assert empty.high_water == full.in_use
    assert empty.reserved == full.reserved


def test_a_lock_that_was_waited_for_is_counted(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = IPCChannelLayer(prefix, lock_timeout=LIVENESS)
    layer.send("a", {})
    assert layer.stats().lock.waits == 0
    slept = threading.Event()
    sleep = time.sleep

    def noted(seconds: float) -> None:
        slept.set()
        sleep(seconds)

    monkeypatch.setattr("asgi_ipc.segment.section.time.sleep", noted)

    def holder(line) -> None:  # type: ignore[no-untyped-def]
        own = IPCChannelLayer(prefix)
        own._core.attach().section(rests, line)
        rests(line)  # it stays: to leave, it would take the lock again

    with child(holder) as process:
        process.hear()
        found = layer.stats()
        assert found.lock.holder == process.pid
        waiting = threading.Thread(target=layer.send, args=("a", {}))
        waiting.start()
        assert slept.wait(LIVENESS)
        process.say()
        waiting.join(LIVENESS)
        process.hear()
        found = layer.stats()
    assert found.lock.holder == 0
    assert found.lock.waits == 1
    assert 0 < found.lock.longest == found.lock.waited < LIVENESS


def test_it_needs_no_lock(prefix: str) -> None:
    """It works while a stopped process holds the lock."""
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    with stopped_holder(layer) as pid:
        with bounded():
            found = layer.stats()
        assert (found.pending, found.lock.holder) == (1, pid)


def test_looking_does_not_drop_the_locks_that_tell_who_lives(prefix: str) -> None:
    """Closing a file drops all locks that the process has on it."""
    layer = IPCChannelLayer(prefix)
    for _ in range(3):
        layer.stats()
        Snapshot(View(prefix)).processes()
    members = layer._core.attach().attachment.segment.paths.members
    with child(lambda line: line.say(attached_processes(members))) as process:
        assert list(process.hear().values()) == [os.getpid()]


def test_a_layer_that_was_removed_says_so(prefix: str) -> None:
    from asgi_ipc import segment

    layer = IPCChannelLayer(prefix)
    layer.stats()
    segment.destroy(prefix)
    with pytest.raises(SegmentVanished):
        layer.stats()


def test_rates_begin_with_the_last_look_that_is_a_second_ago(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("asgi_ipc.clock.monotonic", lambda: now[0])
    layer = IPCChannelLayer(prefix)
    layer.stats()
    for _ in range(10):
        layer.send("a", {})
    now[0] += 2
    assert layer.stats().rates.sent == pytest.approx(5)
    now[0] += 5
    assert layer.stats().rates.sent == 0


def test_a_snapshot_under_traffic_is_never_absurd(prefix: str) -> None:
    """Rows come and go and the log wraps while they are read without the lock."""
    layer = IPCChannelLayer(prefix, capacity=20)

    def traffic(line) -> None:  # type: ignore[no-untyped-def]
        own = IPCChannelLayer(prefix, capacity=20)
        line.say()
        number = 0
        while True:
            number += 1
            try:
                own.send(f"c{number % 50}", {"text": "x" * (number % 3000)})
                own.group_add(f"g{number % 9}", f"c{number % 50}")
                if number % 3:
                    own.receive([f"c{(number * 7) % 50}"])
                if number % 100 == 0:
                    own.group_discard(f"g{number % 9}", f"c{number % 50}")
                if number % 500 == 0:
                    own.flush()
            except own.ChannelFull:
                own.receive([f"c{number % 50}"])

    layer.send("c0", {})
    with child(traffic) as process:
        process.hear()
        view = View(prefix)
        names = {f"c{number}" for number in range(50)}
        for _ in range(200):
            snapshot = Snapshot(view)
            channels = snapshot.channels()
            assert {channel.name for channel in channels} <= names
            assert all(0 <= channel.pending <= 21 for channel in channels)
            assert all(0 <= channel.oldest < 60 for channel in channels)
            assert {group.name for group in snapshot.groups()} <= {f"g{n}" for n in range(9)}
            stats = snapshot.stats()
            assert 0 <= stats.pending <= 50 * 21 and 0 <= stats.oldest < 60
            assert stats.memory.in_use < stats.memory.limit


def test_a_layer_within_one_process_has_them_too() -> None:
    """Its segment is not in shared memory, so nothing is looked for there."""
    from asgi_ipc.testing.sync import InProcessChannelLayer

    layer = InProcessChannelLayer()
    layer.send("a", {})
    found = layer.stats()
    assert (found.pending, found.sent, found.processes, found.channels) == (1, 1, 1, 1)
    assert 0 < found.memory.in_use < found.memory.reserved < found.memory.size


def test_where_the_environment_adds_to_prefixes(prefix: str, run: Run) -> None:
    """As it does in tests: the command sees the layers of this run only."""
    suffix = {"ASGI_IPC_PREFIX_SUFFIX": "-run"}
    layer = IPCChannelLayer(f"{prefix}-run")
    layer.send("a", {})
    assert run("stats", "--interval", "0", "--json", **suffix).json["pending"] == 1
    assert [one["prefix"] for one in run("list", "--json", **suffix).json] == [prefix]
    assert run("receive", "a", "--timeout", "0", **suffix).code == 0
    assert run("stats", "--interval", "0").code == 3
    layer.close()
    del layer
    assert run("destroy", **suffix).code == 0
