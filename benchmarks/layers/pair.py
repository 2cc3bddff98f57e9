"""`pair`: one process sends a chat event and receives it.

All layers of one interpreter are measured in turn in one process, so that whatever slows the
machine slows them all. Nothing waits here: what is measured is the work of the layer alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from benchmarks.layers import Run
from benchmarks.layers.contenders import IN_MEMORY
from benchmarks.layers.stage import Role, Stage
from benchmarks.measure import Column, Table, interleaved, paired_ratio
from benchmarks.primitives import CHAT

CHANNEL = "chat"
BESIDE = 0.1  # seconds for which another workload measures pairs, to count in them
CHANNELS = [CHANNEL]


def pairs(layer: Any, count: int, message: Any = CHAT) -> float:
    """Seconds for one send and one receive."""
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    start = clock()
    for _ in repeat(None, count):
        send(CHANNEL, message)
        receive(CHANNELS, True)
    return (clock() - start) / max(count, 1)


async def pairs_asyncio(layer: Any, count: int, message: Any = CHAT) -> float:
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    start = clock()
    for _ in repeat(None, count):
        await send(CHANNEL, message)
        await receive(CHANNEL)
    return (clock() - start) / max(count, 1)


def grown(count: int, taken: float, seconds: float) -> int:
    """The next number of pairs on the way to one that fills `seconds`; 0: measure now.

    The way there is the warm-up, and takes about a tenth of the time.
    """
    return 0 if count * taken > seconds / 20 else 4 * count


def timed(layer: Any, seconds: float, message: Any = CHAT) -> float:
    """Microseconds for a pair, over as many pairs as fit into `seconds`."""
    count, following = 1, 1
    taken = 0.0
    while following:
        count = following
        taken = pairs(layer, count, message)
        following = grown(count, taken, seconds)
    return pairs(layer, max(1, int(seconds / taken)), message) * 1e6


async def timed_asyncio(layer: Any, seconds: float, message: Any = CHAT) -> float:
    count, following = 1, 1
    taken = 0.0
    while following:
        count = following
        taken = await pairs_asyncio(layer, count, message)
        following = grown(count, taken, seconds)
    return await pairs_asyncio(layer, max(1, int(seconds / taken)), message) * 1e6


def check(layer: Any) -> None:
    """What was sent must arrive as it was: a layer that drops messages would win every race."""
    layer.send(CHANNEL, CHAT)
    if layer.receive(CHANNELS, True) != (CHANNEL, CHAT):
        raise AssertionError("the message that arrived is not the one that was sent")


async def check_asyncio(layer: Any) -> None:
    await layer.send(CHANNEL, CHAT)
    if await layer.receive(CHANNEL) != CHAT:
        raise AssertionError("the message that arrived is not the one that was sent")


TIMED = Role(timed, timed_asyncio)
CHECK = Role(check, check_asyncio)


def pair(run: Run) -> Iterator[Table]:
    """Many short repetitions: load that comes and goes then meets all layers alike.

    The asyncio floor takes no part: it waits, and here nothing does.
    """
    entrants = [one for one in run.contenders if not one.floor or one.contract == "blocking"]
    samples: dict[str, list[float]] = {one.name: [] for one in entrants}
    seconds = run.effort(0.001, 0.05, 0.1)
    with Stage(run.loop) as stage:
        players = {one.name: stage.enter(one, 100, CHANNELS, shared=True) for one in entrants}
        for one in entrants:
            if not one.floor:
                players[one.name].play(CHECK)
        for one in interleaved(run.effort(1, 5, 25), entrants):
            samples[one.name].append(players[one.name].play(TIMED, seconds))
    rows: list[dict[str, Any]] = []
    for name, taken in samples.items():
        row: dict[str, Any] = {"layer": name, "samples": taken}
        row.update(pair=statistics.median(taken), least=min(taken))
        if IN_MEMORY in samples:
            row["ratio"] = paired_ratio(taken, samples[IN_MEMORY])
        rows.append(row)
    yield Table(
        "pair",
        "pair: send + receive in one process, µs",
        (
            Column("layer", "layer"),
            Column("pair", "median", ",.2f"),
            Column("least", "least", ",.2f"),
            Column("ratio", f"× {IN_MEMORY}", ",.2f"),
        ),
        rows,
    )
