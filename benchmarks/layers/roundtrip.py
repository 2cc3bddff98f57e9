"""`roundtrip`: two processes answer each other, both blocked in receive in between.

What counts is not the time, most of which the kernel needs to wake a process, but what the layer
adds to it: the same loop runs over bare FIFOs under the same pinning in the same repetition, and
the excess over that floor is also given in pairs, measured by the same client beforehand. Two
pairs are the least: each way takes one send and one receive.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.layers.contenders import Contender, Role, floor_of, play, prefix_for
from benchmarks.layers.pair import pairs, pairs_asyncio
from benchmarks.measure import Column, Table, interleaved, quantile
from benchmarks.primitives import CHAT
from benchmarks.processes import Children, Cores, pinnings

PING, PONG = "ping", "pong"
WARM_UP = 200
PAIRS = 2_000

Trips = tuple[float, float, float]  # p50 and p99 of a round trip, and one pair; µs


def summary(samples: list[float], pair: float) -> Trips:
    ordered = sorted(samples[WARM_UP:])
    return quantile(ordered, 0.5) * 1e6, quantile(ordered, 0.99) * 1e6, pair * 1e6


def client(layer: Any, trips: int, floor: bool) -> Trips:
    pair = 0.0 if floor else pairs(layer, PAIRS)
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    channels = [PONG]
    samples = []
    for _ in range(WARM_UP + trips):
        start = clock()
        send(PING, CHAT)
        while receive(channels, True)[0] is None:
            pass
        samples.append(clock() - start)
    return summary(samples, pair)


def server(layer: Any, trips: int) -> None:
    send, receive = layer.send, layer.receive
    channels = [PING]
    for _ in range(WARM_UP + trips):
        while receive(channels, True)[0] is None:
            pass
        send(PONG, CHAT)


async def client_asyncio(layer: Any, trips: int, floor: bool) -> Trips:
    pair = 0.0 if floor else await pairs_asyncio(layer, PAIRS)
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    samples = []
    for _ in range(WARM_UP + trips):
        start = clock()
        await send(PING, CHAT)
        await receive(PONG)
        samples.append(clock() - start)
    return summary(samples, pair)


async def server_asyncio(layer: Any, trips: int) -> None:
    send, receive = layer.send, layer.receive
    for _ in range(WARM_UP + trips):
        await receive(PING)
        await send(PONG, CHAT)


CLIENT = Role(client, client_asyncio)
SERVER = Role(server, server_asyncio)


def measure(one: Contender, loop: str, cores: tuple[Cores, Cores], trips: int) -> Trips:
    """One sample, by a fresh pair of processes."""
    with prefix_for(one) as prefix, Children() as children:
        common = (one.name, loop, prefix, 100)
        children.start(play, *common, SERVER, trips, cores=cores[1])
        client = children.start(play, *common, CLIENT, trips, one.floor, cores=cores[0])
        trip: Trips = client.result()
        return trip


def roundtrip(contenders: list[Contender], loop: str, quick: bool) -> Iterator[Table]:
    entrants = [one for one in contenders if not one.local]
    ways = pinnings()
    samples: dict[tuple[str, str], list[Trips]] = {}
    plan = [(way, one) for way in ways for one in entrants]
    for way, one in interleaved(2 if quick else 7, plan):
        taken = measure(one, loop, ways[way], 500 if quick else 4_000)
        samples.setdefault((way, one.name), []).append(taken)

    rows: list[dict[str, Any]] = []
    for way, one in plan:
        mine = samples[way, one.name]
        row: dict[str, Any] = {"way": way, "layer": one.name, "samples": mine}
        row["p50"], row["p99"], pair = map(statistics.median, zip(*mine))
        floors = samples.get((way, floor_of(one.contract).name))
        if not one.floor and floors:
            excess = [trip[0] - floor[0] for trip, floor in zip(mine, floors)]
            row.update(pair=pair, excess=statistics.median(excess))
            row["pairs"] = statistics.median(more / trip[2] for more, trip in zip(excess, mine))
        rows.append(row)
    yield Table(
        "roundtrip: two processes, both blocked in receive, µs",
        (
            Column("way", "pinned to"),
            Column("layer", "layer"),
            Column("p50", "p50", ".1f"),
            Column("p99", "p99", ".1f"),
            Column("excess", "over the floor", ".1f"),
            Column("pair", "one pair", ".1f"),
            Column("pairs", "excess in pairs", ".1f"),
        ),
        rows,
    )
