"""`pace`: messages one after another at a steady pace, to a process that waits for each.

How long a message takes to whoever waits for it, and how much of a processor that costs. Where they
come faster than ``spin`` our layers spin in between; those called ``asleep`` never do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.layers import Run
from benchmarks.layers.contenders import Contender, with_asleep
from benchmarks.layers.stage import Role, Stage
from benchmarks.measure import Column, Table, interleaved, quantile
from benchmarks.primitives import CHAT

CHANNEL = "work"
GAPS = (30, 100, 300, 1_000)  # µs from one message to the next
WARM_UP = 200  # messages

Paced = tuple[float, float, float]  # p50 and p99 in µs, from send to received; % of a processor


def produce(layer: Any, count: int, gap: float) -> None:
    send, clock = layer.send, time.monotonic
    following = clock()
    for _ in range(count):
        following += gap
        while (now := clock()) < following:
            pass
        send(CHANNEL, {**CHAT, "at": now})


async def produce_asyncio(layer: Any, count: int, gap: float) -> None:
    send, clock = layer.send, time.monotonic
    following = clock()
    for _ in range(count):
        following += gap
        while (now := clock()) < following:
            pass
        await send(CHANNEL, {**CHAT, "at": now})


def consume(layer: Any, count: int) -> Paced:
    receive, channels, clock = layer.receive, [CHANNEL], time.monotonic
    ages: list[float] = []
    began = spent = 0.0
    while len(ages) < count:
        message = receive(channels, True)[1]
        if message is not None:
            ages.append(clock() - message["at"])
            if len(ages) == WARM_UP:
                began, spent = clock(), time.process_time()
    return _summary(ages, began, spent)


async def consume_asyncio(layer: Any, count: int) -> Paced:
    receive, clock = layer.receive, time.monotonic
    ages: list[float] = []
    began = spent = 0.0
    while len(ages) < count:
        message = await receive(CHANNEL)
        ages.append(clock() - message["at"])
        if len(ages) == WARM_UP:
            began, spent = clock(), time.process_time()
    return _summary(ages, began, spent)


def _summary(ages: list[float], began: float, spent: float) -> Paced:
    busy = (time.process_time() - spent) / (time.monotonic() - began)
    ordered = sorted(ages[WARM_UP:])
    return quantile(ordered, 0.5) * 1e6, quantile(ordered, 0.99) * 1e6, busy * 100


PRODUCE = Role(produce, produce_asyncio)
CONSUME = Role(consume, consume_asyncio)


def measure(run: Run, one: Contender, gap: int) -> Paced:
    """One sample, by fresh processes."""
    count = WARM_UP + max(10, int(run.effort(0.01, 0.5, 2.0) / gap * 1e6))
    with Stage(run.loop) as stage:
        receiver = stage.enter(one, count, listens=[CHANNEL])
        sender = stage.enter(one, count, sends=[CHANNEL])
        receiver.begin(CONSUME, count)
        sender.play(PRODUCE, count, gap / 1e6)
        paced: Paced = receiver.result()
        return paced


def pace(run: Run) -> Iterator[Table]:
    entrants = [one for one in with_asleep(run.contenders) if one.ours]
    plan = [(gap, one) for gap in GAPS for one in entrants]
    samples: dict[tuple[int, str], list[Paced]] = {}
    for gap, one in interleaved(run.effort(1, 1, 5), plan):
        samples.setdefault((gap, one.name), []).extend(run.attempt(one, measure, run, one, gap))
    rows: list[dict[str, Any]] = []
    for gap, one in plan:
        row: dict[str, Any] = {"gap": gap, "layer": one.name, "samples": samples[gap, one.name]}
        if row["samples"]:
            row["p50"], row["p99"], row["busy"] = map(statistics.median, zip(*row["samples"]))
        rows.append(row)
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
