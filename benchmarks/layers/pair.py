"""`pair`: one process sends a chat event and receives it. `backlog`: the same beside a full store.

All layers are measured in turn in this one process, so that whatever slows the machine slows them
all. Nothing waits here: what is measured is the work of the layer alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import Any

from benchmarks.layers.contenders import IN_MEMORY, Contender, Player, Role, prefix_for
from benchmarks.measure import Column, Table, interleaved, paired_ratio
from benchmarks.primitives import CHAT

CHANNEL = "chat"
CHANNELS = [CHANNEL]
WARM_UP = 200

BACKLOGS = (0, 1_000, 10_000)
CROWDED = "crowded"  # one channel that holds all of the waiting messages
MEMBER = "member"  # the one member of each of the groups


def pairs(layer: Any, count: int) -> float:
    """Seconds for one send and one receive."""
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    start = clock()
    for _ in repeat(None, count):
        send(CHANNEL, CHAT)
        receive(CHANNELS, True)
    return (clock() - start) / count


async def pairs_asyncio(layer: Any, count: int) -> float:
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    start = clock()
    for _ in repeat(None, count):
        await send(CHANNEL, CHAT)
        await receive(CHANNEL)
    return (clock() - start) / count


def check(layer: Any) -> None:
    """What was sent must arrive as it was: a layer that drops messages would win every race."""
    layer.send(CHANNEL, CHAT)
    if layer.receive(CHANNELS, True) != (CHANNEL, CHAT):
        raise AssertionError("the message that arrived is not the one that was sent")


async def check_asyncio(layer: Any) -> None:
    await layer.send(CHANNEL, CHAT)
    if await layer.receive(CHANNEL) != CHAT:
        raise AssertionError("the message that arrived is not the one that was sent")


def fill(layer: Any, kind: str, count: int) -> None:
    """Empty the layer, then fill it with `count` messages or groups away from `CHANNEL`."""
    layer.flush()
    for number in range(count):
        if kind == "groups":
            layer.group_add(f"group-{number}", MEMBER)
        else:
            layer.send(f"other-{number}" if kind == "channels" else CROWDED, CHAT)


async def fill_asyncio(layer: Any, kind: str, count: int) -> None:
    await layer.flush()
    for number in range(count):
        if kind == "groups":
            await layer.group_add(f"group-{number}", MEMBER)
        else:
            await layer.send(f"other-{number}" if kind == "channels" else CROWDED, CHAT)


PAIRS = Role(pairs, pairs_asyncio)
CHECK = Role(check, check_asyncio)
FILL = Role(fill, fill_asyncio)


@contextmanager
def opened(contenders: list[Contender], capacity: int = 100) -> Iterator[dict[str, Any]]:
    """The layers by name, opened in this process, each under a prefix of its own."""
    with ExitStack() as stack:
        prefixes = {one.name: stack.enter_context(prefix_for(one)) for one in contenders}
        yield {one.name: one.make(prefixes[one.name], capacity) for one in contenders}


def measure(player: Player, contender: Contender, layer: Any, seconds: float) -> float:
    """Microseconds for a pair, over as many pairs as fit into `seconds`."""
    estimate = player.play(contender, PAIRS, layer, 20)
    count = max(20, int(seconds / estimate))
    player.play(contender, PAIRS, layer, min(count, WARM_UP))
    return float(player.play(contender, PAIRS, layer, count)) * 1e6


def pair(contenders: list[Contender], loop: str, quick: bool) -> Iterator[Table]:
    """Many short repetitions: load that comes and goes then meets all layers alike.

    The asyncio floor takes no part: it waits, and here nothing does.
    """
    player = Player(loop)
    entrants = [one for one in contenders if not one.floor or one.contract == "blocking"]
    samples: dict[str, list[float]] = {one.name: [] for one in entrants}
    rows: list[dict[str, Any]] = []
    with opened(entrants) as layers:
        for one in entrants:
            if not one.floor:
                player.play(one, CHECK, layers[one.name])
        for one in interleaved(5 if quick else 41, entrants):
            taken = measure(player, one, layers[one.name], 0.05 if quick else 0.1)
            samples[one.name].append(taken)
    for name, taken_all in samples.items():
        row: dict[str, Any] = {"layer": name, "samples": taken_all}
        row.update(pair=statistics.median(taken_all), least=min(taken_all))
        if IN_MEMORY in samples:
            row["ratio"] = paired_ratio(taken_all, samples[IN_MEMORY])
        rows.append(row)
    yield Table(
        "pair: send + receive in one process, µs",
        (
            Column("layer", "layer"),
            Column("pair", "median", ".2f"),
            Column("least", "least", ".2f"),
            Column("ratio", f"× {IN_MEMORY}", ".2f"),
        ),
        rows,
    )


def backlog(contenders: list[Contender], loop: str, quick: bool) -> Iterator[Table]:
    """A pair beside n messages in one other channel, n channels of one message each, n groups.

    Each repetition fills and measures all sizes of one kind in turn, so that a flatness ratio
    compares neighbours in time.
    """
    player = Player(loop)
    entrants = [one for one in contenders if not one.floor]
    kinds = ("messages", "channels", "groups")
    samples: dict[tuple[str, str, int], list[float]] = {}
    with opened(entrants, capacity=2 * max(BACKLOGS)) as layers:
        for kind in kinds:
            for one in interleaved(1 if quick else 5, entrants):
                for size in BACKLOGS:
                    player.play(one, FILL, layers[one.name], kind, size)
                    taken = measure(player, one, layers[one.name], 0.05 if quick else 0.3)
                    samples.setdefault((kind, one.name, size), []).append(taken)
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        for one in entrants:
            row: dict[str, Any] = {"kind": kind, "layer": one.name}
            for size in BACKLOGS:
                row[f"{size}"] = statistics.median(samples[kind, one.name, size])
                row[f"{size} samples"] = samples[kind, one.name, size]
            most, none = (samples[kind, one.name, size] for size in (BACKLOGS[-1], BACKLOGS[0]))
            row["flatness"] = paired_ratio(most, none)
            rows.append(row)
    yield Table(
        "backlog: the same pair beside others' messages, channels and groups, µs",
        (
            Column("kind", "beside"),
            Column("layer", "layer"),
            *(Column(f"{size}", f"{size:,}", ",.2f") for size in BACKLOGS),
            Column("flatness", f"{BACKLOGS[-1]:,} / {BACKLOGS[0]}", ",.2f"),
        ),
        rows,
        "messages: in one other channel; channels: one message in each; groups: one member in each",
    )
