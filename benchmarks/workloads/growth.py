"""`growth`: what a pair costs beside a full store, over many channels, to many groups, which should
make no difference, and by the size of its message.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

from benchmarks.layers.contenders import Contender
from benchmarks.layers.contracts import CHAT, Layer
from benchmarks.layers.stage import Stage
from benchmarks.measure import Column, Row, Table, paired_ratio
from benchmarks.workloads import Run
from benchmarks.workloads.pair import timed, together

CROWDED = "crowded"  # one channel that holds all of the pending messages
MEMBER = "member"  # the one member of each of the groups


class Slope(NamedTuple):
    """A kind of pair whose cost may depend on a number, and the numbers to try."""

    name: str
    title: str
    sizes: tuple[int, ...]


MESSAGES = Slope(
    "messages",
    "backlog: a pair beside n messages that are pending in another channel, µs",
    (0, 1_000, 10_000, 50_000),
)
CHANNELS = Slope(
    "channels",
    "backlog: a pair on a different one of n channels each time, µs",
    (1, 1_000, 10_000, 100_000),
)
GROUPS = Slope("groups", "backlog: a pair beside n groups, µs", (1, 1_000, 10_000))
GROUP_SENDS = Slope(
    "group sends",
    "backlog: a send to a different one of n groups of one member each time, and its receive, µs",
    (1, 1_000, 10_000),
)
SIZES = Slope(
    "sizes", "sizes: a pair by the size of its message in bytes, µs", (100, 10_000, 1_000_000)
)


async def fill(layer: Layer, kind: str, count: int, within: float) -> bool:
    """Use `count` messages, channels or groups; False if that takes longer than `within`."""
    end = time.monotonic() + within
    for number in range(count):
        if kind == MESSAGES.name:
            await layer.send(CROWDED, CHAT)
        elif kind == CHANNELS.name:
            await layer.pairs([f"channel-{number}"], CHAT)
        else:
            await layer.group_add(f"group-{number}", MEMBER)
        if time.monotonic() > end:
            return False
    return True


async def beside(
    layer: Layer, kind: str, count: int, seconds: float, within: float
) -> float | None:
    """Microseconds for a pair with `count` of a kind; None if they take too long to fill in."""
    taken = None
    if await fill(layer, kind, count, within):
        if kind == CHANNELS.name:
            taken = await timed(layer, seconds, [f"channel-{number}" for number in range(count)])
        elif kind == GROUP_SENDS.name:
            taken = await over_groups(layer, count, seconds)
        else:
            taken = await timed(layer, seconds)
    await layer.flush()
    return taken


async def over_groups(layer: Layer, groups: int, seconds: float) -> float:
    """Microseconds for a send to the next group of one member, and the member's receive."""
    done, start = 0, time.perf_counter()
    for number in cycle(range(groups)):
        await layer.group_send(f"group-{number}", CHAT)
        await layer.receive(MEMBER)
        done += 1
        if time.perf_counter() - start > seconds:
            break
    return (time.perf_counter() - start) / done * 1e6


async def of_size(layer: Layer, size: int, seconds: float) -> float:
    """Microseconds for a pair of a message of about `size` bytes, nearly all of them in one text.

    First a large block is freed, as happens in any process sooner or later. From then on glibc
    keeps freed memory up to that size. Before, it may give a megabyte back to the kernel and fetch
    it again for each message. That costs more than all the rest, and whether it happens depends on
    what else lies on the heap.
    """
    bytes(31 << 20)
    message = {"type": "chat.message", "room": "lobby", "text": "x" * (size - 40)}
    return await timed(layer, seconds, message=message)


def growth(run: Run) -> Iterator[Table]:
    """a pair beside messages, channels and groups, and with messages of up to 1 MB"""
    for slope in (MESSAGES, CHANNELS, GROUPS, GROUP_SENDS):
        entrants = [one for one in run.contenders if one.groups and one.queues]
        numbers = run.effort((slope.sizes[0], 10), slope.sizes[:3], slope.sizes)
        yield _slope(run, slope, numbers, entrants)
    entrants = [one for one in run.contenders if not one.floor]
    yield _slope(run, SIZES, run.effort(SIZES.sizes[:2], SIZES.sizes, SIZES.sizes), entrants)


def _slope(run: Run, slope: Slope, numbers: tuple[int, ...], entrants: list[Contender]) -> Table:
    seconds, within = run.effort(0.001, 0.05, 0.3), run.effort(1.0, 1.0, 4.0)
    with Stage() as stage:
        players = together(stage, entrants, 100 if slope is SIZES else 2 * max(numbers))

        def measure(one: Contender) -> list[float | None]:
            """All numbers in turn, so that neighbours in time are compared."""
            player, taken = players[one.name], []
            for number in numbers:
                if slope is SIZES:
                    taken.append(player.play(of_size, number, seconds))
                else:
                    taken.append(player.play(beside, slope.name, number, seconds, within))
                if taken[-1] is None:
                    break
            return taken

        samples = run.samples(run.effort(1, 1, 5), [(one,) for one in entrants], measure)
    rows: list[Row] = []
    for (one,), mine in samples.items():
        row: Row = {"layer": one.name}
        for position, number in enumerate(numbers):
            known = [taken[position] for taken in mine if len(taken) > position]
            found = [taken for taken in known if taken is not None]
            if found:
                row[f"{number}"] = statistics.median(found)
                row[f"{number} samples"] = found
                if position:
                    row["flatness"] = paired_ratio(found, row[f"{numbers[0]} samples"])
        rows.append(row)
    return Table(
        slope.name,
        slope.title,
        (
            Column("layer", "layer"),
            *(Column(f"{number}", f"{number:,}", ",.2f") for number in numbers),
            Column("flatness", "last / first", ",.2f"),
        ),
        rows,
        "" if slope is SIZES else f"left out: setups that take longer than {within:g} s",
    )
