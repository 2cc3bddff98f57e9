"""`pace`: messages one after another at a steady pace, to a process that waits for each.

How long a message takes to reach the process that waits for it, and how much of a processor that
costs. Where messages come faster than ``spin``, our layers spin in between. Those called ``asleep``
never do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from benchmarks.layers.contenders import Contender, with_asleep
from benchmarks.layers.contracts import CHAT, Layer
from benchmarks.layers.stage import Stage
from benchmarks.measure import Column, Table, medians, quantile
from benchmarks.workloads import Run

CHANNEL = "work"
GAPS = (30, 100, 300, 1_000)  # µs from one message to the next
WARM_UP = 200  # messages


class Paced(NamedTuple):
    p50: float  # µs from send to received
    p99: float
    busy: float  # % of a processor


async def produce(layer: Layer, count: int, gap: float) -> None:
    send, clock = layer.send, time.monotonic
    following = clock()
    for _ in range(count):
        following += gap
        while (now := clock()) < following:
            pass
        await send(CHANNEL, {**CHAT, "at": now})


async def consume(layer: Layer, count: int) -> Paced:
    receive, clock = layer.receive, time.monotonic
    ages: list[float] = []
    began = spent = 0.0
    while len(ages) < count:
        message = await receive(CHANNEL)
        ages.append(clock() - message["at"])
        if len(ages) == WARM_UP:
            began, spent = clock(), time.process_time()
    busy = (time.process_time() - spent) / (clock() - began)
    ordered = sorted(ages[WARM_UP:])
    return Paced(quantile(ordered, 0.5) * 1e6, quantile(ordered, 0.99) * 1e6, busy * 100)


def measure(run: Run, one: Contender, gap: int) -> Paced:
    """One sample, by fresh processes."""
    count = WARM_UP + max(10, int(run.effort(0.01, 0.5, 2.0) / gap * 1e6))
    with Stage() as stage:
        receiver = stage.enter(one, count, listens=[CHANNEL])
        sender = stage.enter(one, count, sends=[CHANNEL])
        receiver.begin(consume, count)
        sender.play(produce, count, gap / 1e6)
        paced: Paced = receiver.result()
        return paced


def pace(run: Run) -> Iterator[Table]:
    """messages at a steady pace: how long each takes, and how busy that keeps a process"""
    ours = [one for one in run.contenders if one.ours]
    entrants = run.effort(ours, with_asleep(ours), with_asleep(ours))
    plan = [(one, gap) for gap in run.effort(GAPS[:1], GAPS, GAPS) for one in entrants]
    samples = run.samples(run.effort(1, 1, 5), plan, partial(measure, run))
    rows = [
        {"gap": gap, "layer": one.name, "samples": mine, **medians(Paced._fields, mine)}
        for (one, gap), mine in samples.items()
    ]
    yield Table(
        "pace",
        "pace: messages at a steady pace, µs until they are received",
        (
            Column("gap", "one every, µs", ",d"),
            Column("layer", "layer"),
            Column("p50", "p50", ",.1f"),
            Column("p99", "p99", ",.1f"),
            Column("busy", "% of a processor", ",.0f"),
        ),
        rows,
    )
