"""What a layer costs beside its messages: `idle` CPU, `memory`, the time to `attach`, and the time
of `recovery` after a process was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.layers import Run, redis_server
from benchmarks.layers.contenders import CONTENDERS, Contender
from benchmarks.layers.slopes import CROWDED, FILL
from benchmarks.layers.stage import Player, Role, Stage
from benchmarks.measure import Column, Table, interleaved
from benchmarks.primitives import CHAT
from benchmarks.processes import ChildFailed, Children

SETTLE = 1.0  # seconds until a process that begins to receive counts as blocked
PROCESSES = 4
FILLED_WITHIN = 10.0  # seconds; a layer that takes longer is left without figures


# -- idle -----------------------------------------------------------------------------------------


def listen(layer: Any, channel: str) -> None:
    while layer.receive([channel], True)[0] is None:
        pass
    raise AssertionError("an idle channel got a message")


async def listen_asyncio(layer: Any, channel: str) -> None:
    await layer.receive(channel)
    raise AssertionError("an idle channel got a message")


LISTEN = Role(listen, listen_asyncio)


def tick(layer: Any, channel: str) -> None:
    """The floor: a process that wakes once a second and finds nothing to do."""
    while True:
        time.sleep(1.0)


async def tick_asyncio(layer: Any, channel: str) -> None:
    while True:
        await asyncio.sleep(1.0)


TICK = Role(tick, tick_asyncio)


def usage(pid: int) -> tuple[int, int]:
    """Nanoseconds on a core and number of times put on one, of all threads of a process.

    Counted by the kernel, in /proc/PID/task/*/schedstat. Linux only.
    """
    spent = times = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            on_core, _, slices = map(int, file.read().split())
        spent += on_core
        times += slices
    return spent, times


def idle(run: Run) -> Iterator[Table]:
    """Four processes of each store, all of them at the same time: they do next to nothing."""
    if not os.path.exists("/proc/self/schedstat"):
        yield Table("idle", "idle", (), note="left out: there is no /proc/PID/schedstat here")
        return
    seconds = run.effort(0.2, 2.0, 5.0)
    kinds: dict[str, list[Contender]] = {}
    for one in run.contenders:
        if not one.local and (one.groups or one.floor):
            kinds.setdefault(one.store if one.ours else one.name, []).append(one)
    rows: list[dict[str, Any]] = []
    with Stage(run.loop) as stage:
        started: list[tuple[Contender, Player]] = []
        for entrants in kinds.values():
            for number in range(PROCESSES):
                one, channel = entrants[number % len(entrants)], f"idle-{number}"
                player = stage.enter(one, 100, [channel])
                player.begin(TICK if one.floor else LISTEN, channel)
                started.append((one, player))
        time.sleep(SETTLE)
        before = [usage(player.pid) for _, player in started]
        time.sleep(seconds)
        after = [usage(player.pid) for _, player in started]
    for one in (one for entrants in kinds.values() for one in entrants):
        both = [(b, a) for (whose, _), b, a in zip(started, before, after) if whose is one]
        spent = [(a[0] - b[0]) / seconds for b, a in both]
        times = [(a[1] - b[1]) / seconds for b, a in both]
        rows.append(
            {
                "layer": one.name,
                "processes": len(both),
                "spent": sum(spent) / len(spent) / 1e3,
                "together": PROCESSES * sum(spent) / len(spent) * 5 / 1e6,
                "times": sum(times) / len(times),
            }
        )
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
        "of a floor there is a timer of one second, and nothing else",
    )


# -- memory ---------------------------------------------------------------------------------------


def use(layer: Any) -> None:
    """The first send and the first receive: from here on the layer is in use."""
    layer.send(CROWDED, CHAT)
    layer.receive([CROWDED], True)


async def use_asyncio(layer: Any) -> None:
    await layer.send(CROWDED, CHAT)
    await layer.receive(CROWDED)


USE = Role(use, use_asyncio)


def private_memory() -> int:
    """Bytes that this process shares with no other one."""
    total = 0
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith("Private_"):
                total += int(line.split()[1]) * 1024
    return total


def _outside(one: Contender, place: str) -> int:
    """Bytes that a place takes up outside of its processes."""
    if one.store == "redis":
        return redis_server.memory()
    found = [path for path in Path("/dev/shm").glob(f"*{place}*") if path.is_file()]
    return sum(path.stat().st_blocks * 512 for path in found)


def _memory_of(run: Run, one: Contender, count: int) -> dict[str, Any]:
    """One row, in MB."""
    with Children() as children:
        python, path = one.python()
        bare = children.child(python=python, place=path).call(private_memory)
    with Stage(run.loop) as stage:
        player, place = stage.enter(one, 2 * count), stage.place(one)
        player.play(USE)
        outside = partial(player.do, private_memory) if one.local else partial(_outside, one, place)
        row: dict[str, Any] = {"layer": one.name}
        row["process"] = (player.do(private_memory) - bare) / 1e6
        before = outside()
        row["idle"] = 0.0 if one.local else before / 1e6
        if player.play(FILL, "messages", count, FILLED_WITHIN):
            more = outside() - before
            row["busy"] = row["idle"] + more / 1e6
            row["each"] = more / count
    return row


def memory(run: Run) -> Iterator[Table]:
    if not os.path.exists("/proc/self/smaps_rollup"):
        yield Table("memory", "memory", (), note="left out: there is no smaps_rollup here")
        return
    count = run.effort(10, 1_000, 10_000)
    rows = [
        row
        for one in run.contenders
        if one.groups and one.queues
        for row in run.attempt(one, _memory_of, run, one, count)
    ]
    yield Table(
        "memory",
        f"memory: in use, and with {count:,} chat events waiting, MB",
        (
            Column("layer", "layer"),
            Column("process", "a process, with all imports", ",.1f"),
            Column("idle", "outside, idle", ",.2f"),
            Column("busy", "outside, busy", ",.2f"),
            Column("each", "bytes for a message", ",.0f"),
        ),
        rows,
        "outside: shared memory, or what Redis counts for itself; for InMemory the process itself",
    )


# -- attach ---------------------------------------------------------------------------------------


def first_call(name: str, place: Any, unused: Any) -> float:
    """Milliseconds from the constructor to the end of the first send; what it imports is there,
    because a layer was made before, at an `unused` place."""
    contender = CONTENDERS[name]
    contender.make(unused, 100)
    start = time.perf_counter()
    if contender.contract == "blocking":
        contender.make(place, 100).send("first", CHAT)
        return (time.perf_counter() - start) * 1e3

    async def main() -> float:
        start = time.perf_counter()
        await contender.make(place, 100).send("first", CHAT)
        return (time.perf_counter() - start) * 1e3

    return asyncio.run(main())


def attach(run: Run) -> Iterator[Table]:
    """A fresh process each time; the very first has to make the shared memory as well."""
    entrants = [one for one in run.contenders if one.groups and not one.local]
    created: dict[str, list[float]] = {}
    attached: dict[str, list[float]] = {}
    for one in interleaved(run.effort(1, 3, 5), entrants):
        for first, second in run.attempt(one, _first_calls, run, one):
            created.setdefault(one.name, []).append(first)
            attached.setdefault(one.name, []).append(second)
    yield Table(
        "attach",
        "attach: the first send of a process, ms",
        (
            Column("layer", "layer"),
            Column("attach", "the others are there", ",.2f"),
            Column("create", "the very first", ",.2f"),
        ),
        [
            {
                "layer": one.name,
                "attach": statistics.median(attached[one.name]),
                "create": statistics.median(created[one.name]),
                "samples": attached[one.name],
            }
            for one in entrants
            if one.name in attached
        ],
    )


def _first_calls(run: Run, one: Contender) -> list[float]:
    """Milliseconds of the first process of a place, and of the second while the first is there."""
    with Stage(run.loop) as stage, Children() as children:
        python, path = one.python()
        both = [children.child(python=python, place=path) for _ in range(2)]
        places = stage.place(one), stage.place(one, 1)
        return [child.call(first_call, one.name, *places) for child in both]


# -- recovery -------------------------------------------------------------------------------------


def next_call(layer: Any) -> tuple[float, float]:
    """Milliseconds of the next send to another channel, and of the one after it."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        layer.send("after", CHAT)
        taken.append((time.perf_counter() - start) * 1e3)
    return taken[0], taken[1]


async def next_call_asyncio(layer: Any) -> tuple[float, float]:
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        await layer.send("after", CHAT)
        taken.append((time.perf_counter() - start) * 1e3)
    return taken[0], taken[1]


def die(layer: Any) -> None:
    """Be killed while sending: in the worst place where we know it, anywhere in the others."""
    core = getattr(layer, "_core", None)
    if core is not None:
        _die_inside(core)
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # SIGALRM ends a process that does not handle it
    while True:
        layer.send("last words", CHAT)
        layer.receive(["last words"])


async def die_asyncio(layer: Any) -> None:
    core = getattr(layer, "_core", None)
    if core is not None:
        _die_inside(core)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    while True:
        await layer.send("last words", CHAT)
        await layer.receive("last words")


def _die_inside(core: Any) -> None:
    """Holding the lock, and half way through a change: what recovery is for."""
    from asgi_ipc.store.layout import DIRTY, S_DIRTY

    session = core.attach()

    def half_done() -> None:
        session.store.words[S_DIRTY] = DIRTY
        os.kill(os.getpid(), signal.SIGKILL)

    session.section(half_done)


def left(layer: Any, count: int) -> int:
    """How many of the messages that waited are still there, as far as it goes to ask."""
    found = 0
    while found < count and layer.receive([CROWDED])[0] is not None:
        found += 1
    return found


async def left_asyncio(layer: Any, count: int) -> int:
    for _ in range(count):
        await layer.receive(CROWDED)
    return count


NEXT = Role(next_call, next_call_asyncio)
DIE = Role(die, die_asyncio)
LEFT = Role(left, left_asyncio)


def recovery(run: Run) -> Iterator[Table]:
    """The next call of another process, with messages waiting; and whether they all still do."""
    full = run.effort(10, 10_000, 50_000)
    rows: list[dict[str, Any]] = []
    for one in run.contenders:
        if not (one.groups and one.queues) or one.local:
            continue
        count = full if one.ours else min(full, 1_000)
        samples = []
        for _ in range(run.effort(1, 2, 5) if one.ours else 1):
            with Stage(run.loop) as stage:
                survivor, victim = (stage.enter(one, 2 * full) for _ in range(2))
                if survivor.play(FILL, "messages", count, FILLED_WITHIN):
                    samples.append(_killed(survivor, victim, count))
        rows.append({"layer": one.name, "messages": count, "samples": samples})
        for number, key in enumerate(("next", "then", "left")):
            known = [sample[number] for sample in samples if sample[number] is not None]
            if known:
                rows[-1][key] = statistics.median(known)
    yield Table(
        "recovery",
        "recovery: after a process was killed while it sent, ms",
        (
            Column("layer", "layer"),
            Column("messages", "messages waiting", ",d"),
            Column("next", "the next send", ",.2f"),
            Column("then", "the one after it", ",.3f"),
            Column("left", "messages still there", ",.0f"),
        ),
        rows,
        "asgi_ipc is killed with the lock held and the store half changed, the others somewhere",
    )


def _killed(survivor: Player, victim: Player, count: int) -> tuple[Any, ...]:
    with contextlib.suppress(ChildFailed):
        victim.play(DIE)
    try:
        following = survivor.play(NEXT)
        return (*following, survivor.play(LEFT, count))
    except ChildFailed:
        return None, None, None
