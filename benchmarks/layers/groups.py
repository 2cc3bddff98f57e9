"""`broadcast`: a send to a group of sockets that live in another process: the call, and when the
last socket has it. `churn`: the same with a larger group, of which one leaves and one joins before
each send.

Each socket has a process-specific channel of its own. In Channels 4 a coroutine waits for each; in
Channels 1 one loop receives for all of them, as its server does.

Times are also counted in pairs, those of the sender just before and just after. A pair is measured
by a process that does nothing else, and so is the call: who sends has been at work for a moment.
What it takes who has just slept, and finds its code and data in no cache, is measured apart.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.layers import Run
from benchmarks.layers.contenders import Contender
from benchmarks.layers.pair import BESIDE, CHANNEL, TIMED, pairs, pairs_asyncio
from benchmarks.layers.stage import Role, Stage
from benchmarks.measure import Column, Table
from benchmarks.primitives import CHAT

GROUP, READY = "everybody", "ready"
SOCKETS = "sockets.bench!"
SETTLE = 0.05  # seconds from the start of the last receive to the word that all wait
AT_WORK = 0.005  # seconds that a sender works before its call
FILLED_WITHIN = 20.0  # seconds; a layer that takes longer to fill a group is left out

UNCHANGED, CHANGED, RESTED = "call", "after", "rested"  # kinds of rounds, by what they measure

Change = tuple[float, float]  # seconds that one leave and one join took; 0 where there was none


# -- the process of the sockets -------------------------------------------------------------------


def join(layer: Any, count: int) -> tuple[list[str], float] | None:
    """Make the members; the names, and the seconds that one join took."""
    start = time.perf_counter()
    names = [f"{SOCKETS}{number}" for number in range(count)]
    for name in names:
        layer.group_add(GROUP, name)
        if time.perf_counter() - start > FILLED_WITHIN:
            return None
    return names, (time.perf_counter() - start) / count


async def join_asyncio(layer: Any, count: int) -> tuple[list[str], float] | None:
    names = [await layer.new_channel("sockets") for number in range(count)]
    start = time.perf_counter()
    for name in names:
        await layer.group_add(GROUP, name)
        if time.perf_counter() - start > FILLED_WITHIN:
            return None
    return names, (time.perf_counter() - start) / count


def hear(layer: Any, names: list[str], kinds: list[str]) -> list[tuple[float, Change]]:
    """For each round: when the last socket had the message, and what the change before it took."""
    rounds = []
    layer.receive([SOCKETS])  # from now on they are known to be this process's
    for number, kind in enumerate(kinds):
        change = _change(layer, names[number % len(names)]) if kind == CHANGED else (0.0, 0.0)
        layer.send(READY, CHAT)
        left = set(names)
        while left:
            found, _ = layer.receive([SOCKETS], True)
            left.discard(found)
        rounds.append((time.monotonic(), change))
    return rounds


def _change(layer: Any, name: str) -> Change:
    clock = time.perf_counter
    start = clock()
    layer.group_discard(GROUP, name)
    between = clock()
    layer.group_add(GROUP, name)
    return between - start, clock() - between


async def hear_asyncio(
    layer: Any, names: list[str], kinds: list[str]
) -> list[tuple[float, Change]]:
    rounds = []
    for number, kind in enumerate(kinds):
        name = names[number % len(names)]
        change = await _change_asyncio(layer, name) if kind == CHANGED else (0.0, 0.0)
        waiting = [asyncio.ensure_future(layer.receive(name)) for name in names]
        await asyncio.sleep(SETTLE)
        await layer.send(READY, CHAT)
        await asyncio.gather(*waiting)
        rounds.append((time.monotonic(), change))
    return rounds


async def _change_asyncio(layer: Any, name: str) -> Change:
    clock = time.perf_counter
    start = clock()
    await layer.group_discard(GROUP, name)
    between = clock()
    await layer.group_add(GROUP, name)
    return between - start, clock() - between


# -- the process that sends -----------------------------------------------------------------------


def send(layer: Any, kinds: list[str]) -> list[tuple[float, float]]:
    """For each round when the call began, and when it was over."""
    calls = []
    for kind in kinds:
        while layer.receive([READY], True)[0] is None:
            pass
        time.sleep(SETTLE)
        start = began = time.monotonic()
        while kind != RESTED and start - began < AT_WORK:
            pairs(layer, 1)
            start = time.monotonic()
        layer.send_group(GROUP, CHAT)
        calls.append((start, time.monotonic()))
    return calls


async def send_asyncio(layer: Any, kinds: list[str]) -> list[tuple[float, float]]:
    calls = []
    for kind in kinds:
        await layer.receive(READY)
        await asyncio.sleep(SETTLE)
        start = began = time.monotonic()
        while kind != RESTED and start - began < AT_WORK:
            await pairs_asyncio(layer, 1)
            start = time.monotonic()
        await layer.group_send(GROUP, CHAT)
        calls.append((start, time.monotonic()))
    return calls


def both(layer: Any, names: list[str], kinds: list[str]) -> Any:
    raise NotImplementedError("every layer of Channels 1 reaches other processes")


async def both_asyncio(layer: Any, names: list[str], kinds: list[str]) -> Any:
    """All in one process, for a layer that works in no other way."""
    return await asyncio.gather(hear_asyncio(layer, names, kinds), send_asyncio(layer, kinds))


JOIN = Role(join, join_asyncio)
HEAR = Role(hear, hear_asyncio)
SEND = Role(send, send_asyncio)
BOTH = Role(both, both_asyncio)


def measure(
    run: Run, one: Contender, sockets: int, kinds: list[str]
) -> dict[str, list[Any]] | None:
    """The samples of one contender by name, in ms, but pairs in µs; None if its group takes too
    long to fill."""
    with Stage(run.loop) as stage:
        owner = stage.enter(one, 2 * sockets)
        if one.local:
            sender = owner
        else:
            sender = stage.enter(one, 2 * sockets, [READY, CHANNEL])
        joined = owner.play(JOIN, sockets)
        if joined is None:
            return None
        names, fill = joined
        pair = [sender.play(TIMED, BESIDE)] if one.ours else []
        if one.local:
            rounds, calls = owner.play(BOTH, names, kinds)
        else:
            sender.begin(SEND, kinds)
            owner.begin(HEAR, names, kinds)
            calls = sender.result()
            rounds = owner.result()
            pair += [sender.play(TIMED, BESIDE)] if one.ours else []
    every = list(zip(kinds, calls, rounds))
    samples = {
        kind: [(over - start) * 1e3 for this, (start, over), _ in every if this == kind]
        for kind in (UNCHANGED, CHANGED, RESTED)
    }
    changes = [change for kind, _, (_, change) in every if kind == CHANGED]
    samples.update(
        pair=pair,
        fill=[fill * 1e3],
        last=[(last - start) * 1e3 for _, (start, _), (last, _) in every],
        leave=[leave * 1e3 for leave, _ in changes],
        join=[join * 1e3 for _, join in changes],
    )
    return samples


def _rows(run: Run, sockets: int, rounds: int, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    for one in run.contenders:
        if not one.groups or (one.local and run.effort.level < 2):
            continue
        most = 1 if one.local else run.effort(1, 1, 2) if one.slow else rounds
        rounds_of = [kind for kind in kinds for _ in range(most)]
        row: dict[str, Any] = {"layer": one.name, "samples": None}
        for samples in run.attempt(one, measure, run, one, sockets, rounds_of):
            if samples is None:
                continue
            row["samples"] = samples
            row.update({key: statistics.median(some) for key, some in samples.items() if some})
        yield row


NOTE = f"without figures: the group takes longer than {FILLED_WITHIN:g} s to fill"


def broadcast(run: Run) -> Iterator[Table]:
    sockets = run.effort(20, 5_000, 5_000)
    rounds = run.effort(1, 3, 9)
    yield Table(
        "broadcast",
        f"broadcast: a group send to {sockets:,} sockets of another process, ms",
        (
            Column("layer", "layer"),
            Column("call", "the call", ",.3f"),
            Column("last", "the last one has it", ",.1f"),
            Column("after", "the call after one left and joined", ",.3f"),
            Column("rested", "the call of one who slept", ",.3f"),
        ),
        list(_rows(run, sockets, rounds, (UNCHANGED, CHANGED, RESTED))),
        NOTE,
    )


def churn(run: Run) -> Iterator[Table]:
    members = run.effort(20, 2_000, 10_000)
    entrants = [one for one in run.contenders if not one.local]
    yield Table(
        "churn",
        f"churn: a group of {members:,}; one leaves and joins before each send, ms",
        (
            Column("layer", "layer"),
            Column("fill", "a join, while it grows", ",.3f"),
            Column("leave", "a leave", ",.3f"),
            Column("join", "a join", ",.3f"),
            Column("after", "the send", ",.3f"),
            Column("last", "the last one has it", ",.1f"),
        ),
        list(_rows(replace(run, contenders=entrants), members, run.effort(1, 3, 9), [CHANGED])),
        NOTE,
    )
