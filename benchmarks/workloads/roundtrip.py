"""`roundtrip`: two processes answer each other, both blocked in receive in between.

Most of the time the kernel needs to wake a process. What counts is what the layer adds to that: the
same loop runs over bare FIFOs under the same pinning in the same repetition.

Where both have a processor, neither of our layers goes to sleep, since messages come faster than
``spin``. Those called ``asleep`` have it turned off, and show what a message costs that reaches a
sleeping process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from benchmarks.layers.contenders import Contender, floor_of, with_asleep
from benchmarks.layers.contracts import CHAT, Layer
from benchmarks.layers.stage import Stage
from benchmarks.measure import Column, Row, Table, against, medians, paired_ratio, quantile
from benchmarks.processes import pinnings
from benchmarks.workloads import Run

PING, PONG = "ping", "pong"


class Trips(NamedTuple):
    p50: float  # µs of a round trip
    p99: float


def warm_up(trips: int) -> int:
    return min(200, trips // 5)


async def client(layer: Layer, trips: int) -> Trips:
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    samples = []
    for _ in range(warm_up(trips) + trips):
        start = clock()
        await send(PING, CHAT)
        await receive(PONG)
        samples.append(clock() - start)
    ordered = sorted(samples[-trips:])
    return Trips(quantile(ordered, 0.5) * 1e6, quantile(ordered, 0.99) * 1e6)


async def server(layer: Layer, trips: int) -> None:
    for _ in range(warm_up(trips) + trips):
        await layer.receive(PING)
        await layer.send(PONG, CHAT)


def measure(run: Run, one: Contender, way: str) -> Trips:
    """One sample, by a fresh pair of processes."""
    here, there = pinnings()[way]
    trips = run.effort(10, 500, 3_000) // (10 if one.slow else 1)
    with Stage() as stage:
        other = stage.enter(one, listens=[PING], cores=there)
        this = stage.enter(one, listens=[PONG], cores=here)
        other.begin(server, trips)
        trip: Trips = this.play(client, trips)
        return trip


def roundtrip(run: Run) -> Iterator[Table]:
    """two processes, both blocked in receive, against bare FIFOs"""
    entrants = [one for one in with_asleep(run.contenders) if not one.local]
    ways = run.effort(["unpinned"], [*pinnings()], [*pinnings()])
    plan = [(one, way) for way in ways for one in entrants]
    samples = run.samples(run.effort(1, 2, 5), plan, partial(measure, run))
    rows: list[Row] = []
    for (one, way), mine in samples.items():
        row: Row = {"way": way, "layer": one.name, "samples": mine}
        row.update(medians(Trips._fields, mine))
        floors = samples.get((floor_of(one.contract), way))
        if mine and floors and not one.floor:
            excess = [trip.p50 - floor.p50 for trip, floor in zip(mine, floors)]
            row["excess"] = statistics.median(excess)
            row["floor p99"] = statistics.median(floor.p99 for floor in floors)
            row["ratio"] = paired_ratio([each.p50 for each in mine], [each.p50 for each in floors])
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
            Column("ratio", "× the floor", ",.2f"),
            *against(rows, "p50", "zmq-ipc", "channels_redis-pubsub"),
        ),
        rows,
    )
