"""`throughput`: one process sends as fast as it can, one or four others receive what it sends.
`scaling`: up to eight of each, on one channel or on as many as there are.

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

from benchmarks.layers import Run
from benchmarks.layers.contenders import Contender
from benchmarks.layers.pair import BESIDE, TIMED
from benchmarks.layers.stage import Role, Stage
from benchmarks.measure import Column, Table, interleaved, quantile
from benchmarks.primitives import CHAT

WORK = "work"
STOP = -1
CAPACITY = 1_000  # of `throughput`; `scaling` is about queues of the default length
PATIENCE = 30.0  # seconds until the end of a role; what loses messages also loses words to stop
PAUSE = 0.0005  # seconds until a refused message is tried again
RECEIVERS = (1, 4)
ONE_CHANNEL, MANY_CHANNELS, MANY_PREFIXES = "one channel", "n channels", "n prefixes"
AGES = 7  # of every so many messages the age is taken, no more: it costs time too

Sent = tuple[float, int, int]  # when it began, how many it sent, how many were refused
Got = tuple[float, "array[int]", "array[float]"]  # when it ended, numbers, ages in seconds


def produce(layer: Any, channel: str, first: int, seconds: float, stops: int) -> Sent:
    """Send numbered messages for so many seconds, then a word to stop for each receiver."""
    send, clock = layer.send, time.monotonic
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
                send(channel, message)
                break
            except layer.ChannelFull:
                refused += 1
                time.sleep(PAUSE)
    return start, number - first, refused


def consume(layer: Any, channel: str) -> Got:
    """Receive until told to stop."""
    receive, channels, clock = layer.receive, [channel], time.monotonic
    numbers, ages = array("q"), array("d")
    append = numbers.append
    while True:
        found, message = receive(channels, True)
        if found is not None:
            number = message["number"]
            if number == STOP:
                return clock(), numbers, ages
            append(number)
            if not number % AGES:
                ages.append(clock() - message["at"])


async def produce_asyncio(layer: Any, channel: str, first: int, seconds: float, stops: int) -> Sent:
    send, clock, full = layer.send, time.monotonic, channel_full(layer)
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
                await asyncio.sleep(PAUSE)
    return start, number - first, refused


def channel_full(layer: Any) -> Any:
    """The error of a layer of Channels 4, which is an attribute of some and Channels' for all."""
    try:
        return layer.ChannelFull
    except AttributeError:
        from channels.exceptions import ChannelFull

        return ChannelFull


async def consume_asyncio(layer: Any, channel: str) -> Got:
    receive, clock = layer.receive, time.monotonic
    numbers, ages = array("q"), array("d")
    append = numbers.append
    while True:
        message = await receive(channel)
        number = message["number"]
        if number == STOP:
            return clock(), numbers, ages
        append(number)
        if not number % AGES:
            ages.append(clock() - message["at"])


PRODUCE = Role(produce, produce_asyncio)
CONSUME = Role(consume, consume_asyncio)


def measure(
    run: Run,
    one: Contender,
    producers: int,
    consumers: int,
    seconds: float,
    capacity: int,
    on: str = ONE_CHANNEL,
) -> dict[str, Any]:
    """One sample, by fresh processes."""
    numbers = range(max(producers, consumers))
    channels = [f"{WORK}-{number}" if on == MANY_CHANNELS else WORK for number in numbers]
    places = [number if on == MANY_PREFIXES else 0 for number in numbers]
    with Stage(run.loop) as stage:
        receivers = [
            stage.enter(one, capacity, listens=[channels[number]], at=places[number])
            for number in range(consumers)
        ]
        senders = [
            stage.enter(one, capacity, sends=[channels[number]], at=places[number])
            for number in range(producers)
        ]
        # What it is compared with, by the same process at the same time: a machine has moods.
        pair = senders[0].play(TIMED, BESIDE) if one.ours else None
        for receiver, channel in zip(receivers, channels):
            receiver.begin(CONSUME, channel)
        for number, (sender, channel) in enumerate(zip(senders, channels)):
            sender.begin(PRODUCE, channel, number << 40, seconds, consumers // producers)
        starts, sent, refused = zip(*(sender.result(seconds + PATIENCE) for sender in senders))
        ends, received, ages = zip(*(receiver.result(PATIENCE) for receiver in receivers))
    count = sum(sent)
    seen = Counter(number for numbers in received for number in numbers)
    waited = sorted(age for some in ages for age in some)
    got = [len(numbers) for numbers in received]
    rate = len(seen) / (max(ends) - min(starts))
    return {
        "rate": rate,
        "pairs": None if pair is None else rate * pair / 1e6,
        "p99": quantile(waited, 0.99) * 1e3 if waited else None,
        "senders": min(sent) / max(sent) if max(sent) else None,
        "receivers": min(got) / max(got) if max(got) else None,
        "refused": sum(refused),
        "lost": count - len(seen),
        "doubled": sum(seen.values()) - len(seen),
        "disordered": sum(map(disordered, received)),
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


FAULTS = (
    Column("lost", "lost", ",d"),
    Column("doubled", "doubled", ",d"),
    Column("disordered", "reordered", ",d"),
)


def throughput(run: Run) -> Iterator[Table]:
    entrants = [one for one in run.contenders if not one.local and not one.floor]
    plan = [
        (one, receivers)
        for receivers in RECEIVERS
        for one in entrants
        if one.queues or receivers == 1
    ]
    samples: dict[tuple[str, int], list[dict[str, Any]]] = {}
    seconds, peers = run.effort(0.05, 0.4, 1.0), run.effort(1, 1, 2)
    for number, (one, receivers) in enumerate(interleaved(run.effort(1, 2, 5), plan)):
        if one.ours or number < peers * len(plan):
            taken = run.attempt(one, measure, run, one, 1, receivers, seconds, CAPACITY)
            samples.setdefault((one.name, receivers), []).extend(taken)

    rows: list[dict[str, Any]] = []
    for one, receivers in plan:
        mine = samples[one.name, receivers]
        rates = [sample["rate"] for sample in mine]
        row: dict[str, Any] = {"layer": one.name, "receivers": receivers, "samples": mine}
        if rates:
            row.update(rate=statistics.median(rates), least=min(rates), most=max(rates))
        if one.ours and mine:
            row["pairs"] = statistics.median(sample["pairs"] for sample in mine)
        for fault in ("lost", "doubled", "disordered", "refused"):
            row[fault] = sum(sample[fault] for sample in mine)
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
            Column("pairs", "in the time of a pair", ",.2f"),
            *FAULTS,
            Column("refused", "refused, sent again", ",d"),
        ),
        rows,
    )


SCALED = ("asgi_ipc-blocking", "asgi_ipc-asyncio", "channels_redis", "asgi_redis-1.4.3")


def scaling(run: Run) -> Iterator[Table]:
    """All send and receive as fast as they can; the age of a message is then that of a full queue.

    Fair is 1: the one with the fewest messages has as many as the one with the most. With n
    prefixes each pair of processes has a lock of its own.
    """
    entrants = [one for one in run.contenders if one.name in SCALED]
    sizes = run.effort((2,), (1, 4), (1, 2, 4, 8))
    seconds = run.effort(0.05, 0.4, 0.7)
    plan = [
        (on, size, one)
        for on in (ONE_CHANNEL, MANY_CHANNELS, MANY_PREFIXES)
        for size in sizes
        for one in entrants
        if (on == ONE_CHANNEL or size > 1) and (on != MANY_PREFIXES or one.ours)
    ]
    samples: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for number, (on, size, one) in enumerate(interleaved(run.effort(1, 1, 2), plan)):
        if one.ours or number < len(plan):
            taken = run.attempt(one, measure, run, one, size, size, seconds, 100, on)
            samples.setdefault((on, size, one.name), []).extend(taken)
    rows = []
    for on, size, one in plan:
        mine = samples[on, size, one.name]
        row: dict[str, Any] = {"on": on, "n": size, "layer": one.name, "samples": mine}
        for key in ("rate", "p99", "senders", "receivers"):
            known = [sample[key] for sample in mine if sample[key] is not None]
            row[key] = statistics.median(known) if known else None
        for fault in ("lost", "doubled", "disordered"):
            row[fault] = sum(sample[fault] for sample in mine)
        rows.append(row)
    yield Table(
        "scaling",
        "scaling: n senders and n receivers, each a process, on one channel or on n",
        (
            Column("on", "on"),
            Column("n", "n", "d"),
            Column("layer", "layer"),
            Column("rate", "messages a second", ",.0f"),
            Column("p99", "p99 age, ms", ",.1f"),
            Column("senders", "fair to senders", ".2f"),
            Column("receivers", "fair to receivers", ".2f"),
            *FAULTS,
        ),
        rows,
    )
