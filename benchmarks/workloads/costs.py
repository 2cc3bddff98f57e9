"""What a layer costs beside its messages: CPU while it is `idle`, and the time of `recovery` after
a process was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from benchmarks.layers.contenders import Contender
from benchmarks.layers.contracts import CHAT, Layer
from benchmarks.layers.stage import Stage
from benchmarks.measure import Column, Row, Table, medians
from benchmarks.processes import ChildDied, ChildFailed, Usage
from benchmarks.workloads import Run
from benchmarks.workloads.growth import CROWDED, fill

# Seconds until a process that begins to receive counts as blocked: by then it has reached its first
# deadline in vain (receive_timeout, five seconds), and has begun to receive again.
SETTLE = 7.0
PROCESSES = 4
FILLED_WITHIN = 10.0  # seconds; a layer that takes longer is left without figures
PATIENCE = 30.0  # seconds for all messages that are left


# -- idle -----------------------------------------------------------------------------------------


async def listen(layer: Layer, channel: str) -> None:
    await layer.receive(channel)
    raise AssertionError("an idle channel got a message")


async def tick(layer: Layer, channel: str) -> None:
    """The floor: a process that wakes once a second and finds nothing to do."""
    while True:
        await layer.sleep(1.0)


def idle(run: Run) -> Iterator[Table]:
    """the CPU of four processes blocked in receive"""
    if not os.path.exists("/proc/self/schedstat"):
        yield Table("idle", "idle", (), note="left out: there is no /proc/PID/schedstat here")
        return
    # Four processes of each store, all of them at the same time: they do next to nothing.
    # From one deadline to the next: a multiple of receive_timeout.
    seconds, settle = run.effort(0.2, 5.0, 5.0), run.effort(0.2, SETTLE, SETTLE)
    stores: dict[str, list[Contender]] = {}
    for one in run.contenders:
        if not one.local and (one.groups or one.floor):
            stores.setdefault(one.store if one.ours else one.name, []).append(one)
    with Stage() as stage:
        started = [
            (entrants[number % len(entrants)], f"idle-{number}")
            for entrants in stores.values()
            for number in range(run.effort(2, PROCESSES, PROCESSES))
        ]
        players = [stage.enter(one, listens=[channel]) for one, channel in started]
        for (one, channel), player in zip(started, players):
            player.begin(tick if one.floor else listen, channel)
        time.sleep(settle)
        before = [Usage.of(player.pid) for player in players]
        time.sleep(seconds)
        after = [Usage.of(player.pid) for player in players]
    rows: list[Row] = []
    for one in dict.fromkeys(one for one, _ in started):
        mine = [(b, a) for (this, _), b, a in zip(started, before, after) if this is one]
        spent = statistics.mean(a.spent - b.spent for b, a in mine) / seconds
        times = statistics.mean(a.times - b.times for b, a in mine) / seconds
        row: Row = {"layer": one.name, "processes": len(mine), "spent": spent / 1e3}
        rows.append({**row, "together": PROCESSES * spent * 5 / 1e6, "times": times})
    yield Table(
        "idle",
        f"idle: processes blocked in receive, over {seconds:g} s",
        (
            Column("layer", "layer"),
            Column("processes", "processes", "d"),
            Column("spent", "µs of CPU a second, each", ",.1f"),
            Column("together", "ms of CPU, four in 5 s", ",.2f"),
            Column("times", "wakeups a second, each", ",.1f"),
        ),
        rows,
        "a floor is only a timer of one second",
    )


# -- recovery -------------------------------------------------------------------------------------


class Recovered(NamedTuple):
    """None: no other process could use the layer any more."""

    next: float | None = None  # milliseconds of the next send to another channel
    then: float | None = None  # ... and of the one after it
    left: int | None = None  # messages that are still there


async def next_sends(layer: Layer) -> list[float]:
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        await layer.send("after", CHAT)
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


async def count_left(layer: Layer, count: int) -> int:
    for _ in range(count):
        await layer.receive(CROWDED)
    return count


async def die(layer: Layer, inside: bool) -> None:
    """Be killed while sending: `inside` of a change where we know how, anywhere in the others."""
    if inside:
        die_inside(layer)
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # SIGALRM ends a process that does not handle it
    while True:
        await layer.pairs(["last.words"], CHAT)


def die_inside(layer: Layer) -> None:
    """Die with the lock held and the store half changed: what recovery is for."""
    from asgi_ipc.store.layout import DIRTY, S_DIRTY

    session = layer.layer._core.attach()

    def half_done() -> None:
        session.store.words[S_DIRTY] = DIRTY
        os.kill(os.getpid(), signal.SIGKILL)

    session.section(half_done)


def _recovered(run: Run, one: Contender, count: int) -> Recovered | None:
    """None if it takes too long to fill in the messages."""
    with Stage() as stage:
        survivor, victim = (stage.enter(one, 2 * count) for _ in range(2))
        if not survivor.play(fill, "messages", count, FILLED_WITHIN):
            return None
        with contextlib.suppress(ChildDied):
            victim.play(die, one.ours)
        try:
            following, then = survivor.play(next_sends)
            survivor.begin(count_left, count)
            return Recovered(following, then, survivor.result(PATIENCE))
        except ChildFailed:
            if one.ours:
                raise
            return Recovered()


def recovery(run: Run) -> Iterator[Table]:
    """the next call after a process was killed in the middle of one"""
    full = run.effort(10, 10_000, 50_000)
    plan = [
        (one, full if one.ours else min(full, 1_000))
        for one in run.contenders
        if one.groups and one.queues and not one.local
    ]
    samples = run.samples(run.effort(1, 2, 5), plan, partial(_recovered, run))
    rows: list[Row] = []
    for (one, count), found in samples.items():
        mine = [sample for sample in found if sample is not None]
        row: Row = {"layer": one.name, "messages": count, "samples": mine}
        rows.append({**row, **medians(Recovered._fields, mine)})
    yield Table(
        "recovery",
        "recovery: after a process was killed while it sent, ms",
        (
            Column("layer", "layer"),
            Column("messages", "pending messages", ",d"),
            Column("next", "the next send", ",.2f"),
            Column("then", "the one after it", ",.3f"),
            Column("left", "messages still there", ",.0f"),
        ),
        rows,
        "asgi_ipc is killed with the lock held and the store half changed, the others at any\n"
        "point; no figures: no other process could use the layer any more",
    )
