"""`throughput`: one process sends as fast as it can, one or four others receive what it sends.

Every message carries a number: what was lost, delivered twice, or reordered for a receiver is
counted, and is 0 for a layer that keeps its promise.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.layers.contenders import Contender, Role, play, prefix_for
from benchmarks.measure import Column, Table, interleaved
from benchmarks.primitives import CHAT
from benchmarks.processes import Children

WORK, READY = "work", "ready"
STOP = -1
CAPACITY = 10_000
PAUSE = 0.0005  # seconds until a refused message is tried again
RECEIVERS = (1, 4)


def produce(layer: Any, count: int, receivers: int) -> tuple[float, int]:
    """When the first message was sent, and how often the channel was full."""
    send = layer.send
    for _ in range(receivers):
        while layer.receive([READY], True)[0] is None:
            pass
    refused = 0
    start = time.monotonic()
    for number in [*range(count), *[STOP] * receivers]:
        message = {**CHAT, "number": number}
        while True:
            try:
                send(WORK, message)
                break
            except layer.ChannelFull:
                refused += 1
                time.sleep(PAUSE)
    return start, refused


def consume(layer: Any) -> tuple[float, array[int]]:
    """When the last message came, and the numbers of all, in order."""
    receive, channels = layer.receive, [WORK]
    numbers = array("q")
    layer.send(READY, CHAT)
    while True:
        channel, message = receive(channels, True)
        if channel is not None:
            if message["number"] == STOP:
                return time.monotonic(), numbers
            numbers.append(message["number"])


async def produce_asyncio(layer: Any, count: int, receivers: int) -> tuple[float, int]:
    send = layer.send
    for _ in range(receivers):
        await layer.receive(READY)
    refused = 0
    start = time.monotonic()
    for number in [*range(count), *[STOP] * receivers]:
        message = {**CHAT, "number": number}
        while True:
            try:
                await send(WORK, message)
                break
            except layer.ChannelFull:
                refused += 1
                await asyncio.sleep(PAUSE)
    return start, refused


async def consume_asyncio(layer: Any) -> tuple[float, array[int]]:
    receive = layer.receive
    numbers = array("q")
    await layer.send(READY, CHAT)
    while True:
        message = await receive(WORK)
        if message["number"] == STOP:
            return time.monotonic(), numbers
        numbers.append(message["number"])


PRODUCE = Role(produce, produce_asyncio)
CONSUME = Role(consume, consume_asyncio)


def measure(one: Contender, loop: str, receivers: int, count: int) -> dict[str, float]:
    with prefix_for(one) as prefix, Children() as children:
        common = (one.name, loop, prefix, CAPACITY)
        consumers = [children.start(play, *common, CONSUME) for _ in range(receivers)]
        producer = children.start(play, *common, PRODUCE, count, receivers)
        start, refused = producer.result()
        ends, received = zip(*(consumer.result() for consumer in consumers))
    seen = Counter(number for numbers in received for number in numbers)
    return {
        "rate": count / (max(ends) - start),
        "refused": refused,
        "lost": count - len(seen),
        "doubled": sum(seen.values()) - len(seen),
        "disordered": sum(
            later < earlier for numbers in received for earlier, later in zip(numbers, numbers[1:])
        ),
    }


def throughput(contenders: list[Contender], loop: str, quick: bool) -> Iterator[Table]:
    entrants = [one for one in contenders if not one.local and not one.floor]
    plan = [(one, receivers) for receivers in RECEIVERS for one in entrants]
    samples: dict[tuple[str, int], list[dict[str, float]]] = {}
    for one, receivers in interleaved(2 if quick else 7, plan):
        taken = measure(one, loop, receivers, 10_000 if quick else 100_000)
        samples.setdefault((one.name, receivers), []).append(taken)

    rows: list[dict[str, Any]] = []
    for one, receivers in plan:
        mine = samples[one.name, receivers]
        rates = [sample["rate"] for sample in mine]
        row: dict[str, Any] = {"layer": one.name, "receivers": receivers, "samples": mine}
        row.update(rate=statistics.median(rates), least=min(rates), most=max(rates))
        for fault in ("lost", "doubled", "disordered", "refused"):
            row[fault] = sum(sample[fault] for sample in mine)
        rows.append(row)
    yield Table(
        "throughput: one sender, one channel, messages a second",
        (
            Column("receivers", "receivers", "d"),
            Column("layer", "layer"),
            Column("rate", "median", ",.0f"),
            Column("least", "least", ",.0f"),
            Column("most", "most", ",.0f"),
            Column("lost", "lost", "d"),
            Column("doubled", "doubled", "d"),
            Column("disordered", "reordered", "d"),
            Column("refused", "refused, sent again", "d"),
        ),
        rows,
    )
