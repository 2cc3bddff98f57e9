"""`roundtrip`: two processes answer each other, both blocked in receive in between.

What counts is not the time, most of which the kernel needs to wake a process, but what the layer
adds to it: the same loop runs over bare FIFOs under the same pinning in the same repetition, and
the excess over that floor is also given in pairs, measured by the same client beforehand. Two
pairs are the least: each way takes one send and one receive.

Where both have a processor, neither of our layers goes to sleep, since messages come faster than
``spin``. Those called ``asleep`` have it turned off, and show what a message costs that comes to a
process which sleeps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.layers import Run
from benchmarks.layers.contenders import Contender, floor_of, with_asleep
from benchmarks.layers.pair import CHANNEL, pairs, pairs_asyncio
from benchmarks.layers.stage import Role, Stage
from benchmarks.measure import Column, Table, interleaved, quantile
from benchmarks.primitives import CHAT
from benchmarks.processes import Cores, pinnings

PING, PONG = "ping", "pong"
PAIRS = 2_000

Trips = tuple[float, float, float]  # p50 and p99 of a round trip, and one pair; µs


def warm_up(trips: int) -> int:
    return min(200, trips // 5)


def summary(samples: list[float], trips: int, pair: float) -> Trips:
    ordered = sorted(samples[-trips:])
    return quantile(ordered, 0.5) * 1e6, quantile(ordered, 0.99) * 1e6, pair * 1e6


def client(layer: Any, trips: int, measured_pairs: int) -> Trips:
    pairs(layer, measured_pairs // 2)  # to warm up
    pair = pairs(layer, measured_pairs) if measured_pairs else 0.0
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    channels = [PONG]
    samples = []
    for _ in range(warm_up(trips) + trips):
        start = clock()
        send(PING, CHAT)
        while receive(channels, True)[0] is None:
            pass
        samples.append(clock() - start)
    return summary(samples, trips, pair)


def server(layer: Any, trips: int) -> None:
    send, receive = layer.send, layer.receive
    channels = [PING]
    for _ in range(warm_up(trips) + trips):
        while receive(channels, True)[0] is None:
            pass
        send(PONG, CHAT)


async def client_asyncio(layer: Any, trips: int, measured_pairs: int) -> Trips:
    await pairs_asyncio(layer, measured_pairs // 2)  # to warm up
    pair = await pairs_asyncio(layer, measured_pairs) if measured_pairs else 0.0
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    samples = []
    for _ in range(warm_up(trips) + trips):
        start = clock()
        await send(PING, CHAT)
        await receive(PONG)
        samples.append(clock() - start)
    return summary(samples, trips, pair)


async def server_asyncio(layer: Any, trips: int) -> None:
    send, receive = layer.send, layer.receive
    for _ in range(warm_up(trips) + trips):
        await receive(PING)
        await send(PONG, CHAT)


CLIENT = Role(client, client_asyncio)
SERVER = Role(server, server_asyncio)


def measure(run: Run, one: Contender, cores: tuple[Cores, Cores]) -> Trips:
    """One sample, by a fresh pair of processes."""
    trips = run.effort(10, 500, 3_000) // (10 if one.slow else 1) or 1
    measured_pairs = run.effort(20, 500, PAIRS) // (20 if one.slow else 1)
    if one.floor or not one.groups:
        measured_pairs = 0
    with Stage(run.loop) as stage:
        server = stage.enter(one, 100, [PING], cores=cores[1])
        client = stage.enter(one, 100, [PONG, CHANNEL], cores=cores[0])
        server.begin(SERVER, trips)
        trip: Trips = client.play(CLIENT, trips, measured_pairs)
        return trip


def roundtrip(run: Run) -> Iterator[Table]:
    entrants = [one for one in with_asleep(run.contenders) if not one.local]
    ways = pinnings()
    if not run.effort.level:
        ways = {"unpinned": ways["unpinned"]}
    samples: dict[tuple[str, str], list[Trips]] = {}
    plan = [(way, one) for way in ways for one in entrants]
    enough = run.effort(1, 1, 2)  # of what takes milliseconds
    for number, (way, one) in enumerate(interleaved(run.effort(1, 2, 5), plan)):
        if one.slow and number >= enough * len(plan):
            continue
        taken = run.attempt(one, measure, run, one, ways[way])
        samples.setdefault((way, one.name), []).extend(taken)

    rows: list[dict[str, Any]] = []
    for way, one in plan:
        mine = samples[way, one.name]
        row: dict[str, Any] = {"way": way, "layer": one.name, "samples": mine}
        if not mine:
            rows.append(row)
            continue
        row["p50"], row["p99"], pair = map(statistics.median, zip(*mine))
        floors = samples.get((way, floor_of(one.contract).name))
        if not one.floor and floors:
            excess = [trip[0] - floor[0] for trip, floor in zip(mine, floors)]
            row.update(pair=pair or None, excess=statistics.median(excess))
            row["floor p99"] = statistics.median(floor[1] for floor in floors)
            if pair:
                row["pairs"] = statistics.median(more / trip[2] for more, trip in zip(excess, mine))
        rows.append(row)
    yield Table(
        "roundtrip",
        "roundtrip: two processes, both blocked in receive, µs",
        (
            Column("way", "pinned to"),
            Column("layer", "layer"),
            Column("p50", "p50", ",.1f"),
            Column("p99", "p99", ",.1f"),
            Column("excess", "over the floor", ",.1f"),
            Column("pair", "one pair", ",.1f"),
            Column("pairs", "excess in pairs", ",.1f"),
        ),
        rows,
    )
