"""`throughput`: one process sends as fast as it can, one or four others receive what it sends.
`scaling`: up to eight of each, on one channel or on one channel each.

Every message carries a number. What was lost, delivered twice, or reordered for a receiver is
counted, and is 0 for a layer that keeps its promise. The CPU is that of all processes together, a
Redis server included.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from benchmarks.layers.contenders import Contender
from benchmarks.layers.contracts import CHAT, Layer
from benchmarks.layers.stage import Stage
from benchmarks.measure import Column, Row, Table, against, medians, quantile
from benchmarks.workloads import Run

WORK = "work"
STOP = -1
PATIENCE = 30.0  # seconds until the end of a role; a layer that loses messages also loses a STOP
PAUSE = 0.0005  # seconds until a refused message is tried again
AGES = 7  # the age of every seventh message is taken, because that costs time too
ONE_CHANNEL, MANY_CHANNELS, MANY_PREFIXES = KINDS = "one channel", "n channels", "n prefixes"


class Load(NamedTuple):
    """How many processes send and receive, for how long, over what."""

    senders: int
    receivers: int
    seconds: float
    capacity: int = 100
    on: str = ONE_CHANNEL


class Sent(NamedTuple):
    start: float
    messages: int
    refused: int


class Got(NamedTuple):
    end: float
    numbers: array[int]
    ages: array[float]  # seconds


async def produce(layer: Layer, channel: str, first: int, seconds: float, stops: int) -> Sent:
    """Send numbered messages for that many seconds, then a STOP for each receiver."""
    send, clock, full = layer.send, time.monotonic, layer.full
    refused, number = 0, first
    start = now = clock()
    while stops:
        now = clock()
        if now - start < seconds:
            message = {**CHAT, "number": number, "at": now}
            number += 1
        else:
            message = {**CHAT, "number": STOP, "at": now}
            stops -= 1
        while True:
            try:
                await send(channel, message)
                break
            except full:
                refused += 1
                await layer.sleep(PAUSE)
    return Sent(start, number - first, refused)


async def consume(layer: Layer, channel: str) -> Got:
    """Receive until told to stop."""
    receive, clock = layer.receive, time.monotonic
    numbers, ages = array("q"), array("d")
    append = numbers.append
    while True:
        message = await receive(channel)
        number = message["number"]
        if number == STOP:
            return Got(clock(), numbers, ages)
        append(number)
        if not number % AGES:
            ages.append(clock() - message["at"])


def measure(run: Run, one: Contender, load: Load) -> Row:
    """One sample, by fresh processes."""
    numbers = range(max(load.senders, load.receivers))
    channels = [f"{WORK}-{number}" if load.on == MANY_CHANNELS else WORK for number in numbers]
    places = [number if load.on == MANY_PREFIXES else 0 for number in numbers]
    with Stage() as stage:
        receivers = [
            stage.enter(one, load.capacity, listens=[channels[number]], at=places[number])
            for number in range(load.receivers)
        ]
        senders = [
            stage.enter(one, load.capacity, sends=[channels[number]], at=places[number])
            for number in range(load.senders)
        ]
        for player in (*receivers, *senders):
            player.wait_until_open()
        before = stage.spent()
        for receiver, channel in zip(receivers, channels):
            receiver.begin(consume, channel)
        stops = load.receivers // load.senders
        for number, (sender, channel) in enumerate(zip(senders, channels)):
            sender.begin(produce, channel, number << 40, load.seconds, stops)
        sent: list[Sent] = [sender.result(load.seconds + PATIENCE) for sender in senders]
        got: list[Got] = [receiver.result(PATIENCE) for receiver in receivers]
        cpu = stage.spent() - before
    seen = Counter(number for one_got in got for number in one_got.numbers)
    ages = sorted(age for one_got in got for age in one_got.ages)
    counts, received = [one.messages for one in sent], [len(one.numbers) for one in got]
    rate = len(seen) / (max(one.end for one in got) - min(one.start for one in sent))
    return {
        "rate": rate,
        "cpu": cpu / max(len(seen), 1) * 1e6,
        "p99": quantile(ages, 0.99) * 1e3 if ages else None,
        "senders": min(counts) / max(counts) if max(counts) else None,
        "receivers": min(received) / max(received) if max(received) else None,
        "refused": sum(one.refused for one in sent),
        "lost": sum(counts) - len(seen),
        "doubled": sum(seen.values()) - len(seen),
        "disordered": sum(disordered(one.numbers) for one in got),
    }


def disordered(numbers: array[int]) -> int:
    """How many came before an earlier one of the same sender."""
    last: dict[int, int] = {}
    count = 0
    for number in numbers:
        sender = number >> 40
        count += number < last.get(sender, number)
        last[sender] = number
    return count


def _summary(samples: list[Row], keys: tuple[str, ...]) -> Row:
    """Medians of the keys, and the faults of all samples together."""
    row: Row = {"samples": samples}
    row.update(medians(keys, [[sample[key] for key in keys] for sample in samples]))
    for fault in ("lost", "doubled", "disordered", "refused"):
        row[fault] = sum(sample[fault] for sample in samples)
    return row


FAULTS = (
    Column("lost", "lost", ",d"),
    Column("doubled", "doubled", ",d"),
    Column("disordered", "reordered", ",d"),
)


def throughput(run: Run) -> Iterator[Table]:
    """one sender, one or four receivers, every message counted"""
    entrants = [one for one in run.contenders if not one.local and not one.floor]
    seconds = run.effort(0.05, 0.4, 1.0)
    plan = [
        (one, Load(1, receivers, seconds, capacity=1_000))
        for receivers in run.effort((1, 2), (1, 4), (1, 4))
        for one in entrants
        if one.queues or receivers == 1
    ]
    samples = run.samples(run.effort(1, 2, 5), plan, partial(measure, run))
    rows: list[Row] = []
    for (one, load), mine in samples.items():
        row = {"layer": one.name, "receivers": load.receivers}
        row.update(_summary(mine, ("rate", "cpu")))
        if mine:
            rates = [sample["rate"] for sample in mine]
            row.update(least=min(rates), most=max(rates))
        rows.append(row)
    yield Table(
        "throughput",
        "throughput: one sender, one channel, messages a second",
        (
            Column("receivers", "receivers", "d"),
            Column("layer", "layer"),
            Column("rate", "median", ",.0f"),
            Column("least", "least", ",.0f"),
            Column("most", "most", ",.0f"),
            *against(rows, "rate", "zmq-ipc", "multiprocessing.Queue", "channels_redis-pubsub"),
            Column("cpu", "µs of CPU each", ",.1f"),
            *FAULTS,
            Column("refused", "refused, sent again", ",d"),
        ),
        rows,
    )


SCALED = ("asgi_ipc-blocking", "asgi_ipc-asyncio", "channels_redis", "asgi_redis-1.4.3")


def scaling(run: Run) -> Iterator[Table]:
    """one to eight senders and receivers, on one channel and on many"""
    # All send and receive as fast as they can; the age of a message is then that of a full queue.
    # Fair is 1: the one with the fewest messages has as many as the one with the most. With n
    # prefixes each pair of processes has a lock of its own.
    entrants = [one for one in run.contenders if one.name in SCALED]
    seconds = run.effort(0.05, 0.4, 0.7)
    plan = [
        (one, Load(size, size, seconds, on=on))
        for on in run.effort(KINDS[1:], KINDS, KINDS)
        for size in run.effort((2,), (1, 4), (1, 2, 4, 8))
        for one in entrants
        if (on == ONE_CHANNEL or size > 1) and (on != MANY_PREFIXES or one.ours)
    ]
    samples = run.samples(run.effort(1, 1, 2), plan, partial(measure, run))
    rows = [
        {"on": load.on, "n": load.senders, "layer": one.name}
        | _summary(mine, ("rate", "cpu", "p99", "senders", "receivers"))
        for (one, load), mine in samples.items()
    ]
    yield Table(
        "scaling",
        "scaling: n senders and n receivers, each a process, on one channel or on n",
        (
            Column("on", "on"),
            Column("n", "n", "d"),
            Column("layer", "layer"),
            Column("rate", "messages a second", ",.0f"),
            Column("cpu", "µs of CPU each", ",.1f"),
            Column("p99", "p99 age, ms", ",.1f"),
            Column("senders", "fair to senders", ".2f"),
            Column("receivers", "fair to receivers", ".2f"),
            *FAULTS,
        ),
        rows,
    )
