"""`backlog`: a pair beside a full store, on many channels, to many groups; all should cost alike.
`sizes`: a pair by the size of its message.
"""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from benchmarks.layers import Run
from benchmarks.layers.contenders import Contender
from benchmarks.layers.pair import CHANNELS, TIMED
from benchmarks.layers.stage import Player, Role, Stage
from benchmarks.measure import Column, Table, interleaved, paired_ratio
from benchmarks.primitives import CHAT

CROWDED = "crowded"  # one channel that holds all of the waiting messages
MEMBER = "member"  # the one member of each of the groups
YARDSTICK = "msgpack both ways + 2 copies"

# -- the same beside n of something, or with n of something ---------------------------------------


def fill(layer: Any, kind: str, count: int, within: float) -> bool:
    """Empty the layer, then put in `count` messages or groups; False if `within` was too short."""
    layer.flush()
    end = time.monotonic() + within
    for number in range(count):
        if kind == "groups":
            layer.group_add(f"group-{number}", MEMBER)
        else:
            layer.send(CROWDED, CHAT)
        if time.monotonic() > end:
            return False
    return True


async def fill_asyncio(layer: Any, kind: str, count: int, within: float) -> bool:
    await layer.flush()
    end = time.monotonic() + within
    for number in range(count):
        if kind == "groups":
            await layer.group_add(f"group-{number}", MEMBER)
        else:
            await layer.send(CROWDED, CHAT)
        if time.monotonic() > end:
            return False
    return True


def over_channels(layer: Any, names: int, seconds: float, within: float) -> float | None:
    """Microseconds for a pair on the next channel each time, after one round over all of them."""
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    end = clock() + within
    for name in channel_names(names):
        send(name, CHAT)
        receive([name], True)
        if clock() > end:
            return None
    done, start = 0, clock()
    for name in cycle(channel_names(names)):
        send(name, CHAT)
        receive([name], True)
        done += 1
        if clock() - start > seconds:
            break
    return (clock() - start) / done * 1e6


async def over_channels_asyncio(
    layer: Any, names: int, seconds: float, within: float
) -> float | None:
    send, receive, clock = layer.send, layer.receive, time.perf_counter
    end = clock() + within
    for name in channel_names(names):
        await send(name, CHAT)
        await receive(name)
        if clock() > end:
            return None
    done, start = 0, clock()
    for name in cycle(channel_names(names)):
        await send(name, CHAT)
        await receive(name)
        done += 1
        if clock() - start > seconds:
            break
    return (clock() - start) / done * 1e6


def channel_names(count: int) -> list[str]:
    return [f"channel-{number}" for number in range(count)]


def over_groups(layer: Any, groups: int, seconds: float) -> float:
    """Microseconds for a send to the next group of one member, and the member's receive."""
    send, receive, clock = layer.send_group, layer.receive, time.perf_counter
    done, start = 0, clock()
    for number in cycle(range(groups)):
        send(f"group-{number}", CHAT)
        receive([MEMBER], True)
        done += 1
        if clock() - start > seconds:
            break
    return (clock() - start) / done * 1e6


async def over_groups_asyncio(layer: Any, groups: int, seconds: float) -> float:
    send, receive, clock = layer.group_send, layer.receive, time.perf_counter
    done, start = 0, clock()
    for number in cycle(range(groups)):
        await send(f"group-{number}", CHAT)
        await receive(MEMBER)
        done += 1
        if clock() - start > seconds:
            break
    return (clock() - start) / done * 1e6


FILL = Role(fill, fill_asyncio)
OVER_CHANNELS = Role(over_channels, over_channels_asyncio)
OVER_GROUPS = Role(over_groups, over_groups_asyncio)


def beside_messages(player: Player, size: int, seconds: float, within: float) -> float | None:
    return player.play(TIMED, seconds) if player.play(FILL, "messages", size, within) else None


def beside_groups(player: Player, size: int, seconds: float, within: float) -> float | None:
    return player.play(TIMED, seconds) if player.play(FILL, "groups", size, within) else None


def to_groups(player: Player, size: int, seconds: float, within: float) -> float | None:
    filled = player.play(FILL, "groups", size, within)
    return player.play(OVER_GROUPS, size, seconds) if filled else None


def on_channels(player: Player, size: int, seconds: float, within: float) -> float | None:
    player.play(FILL, "", 0, within)
    taken: float | None = player.play(OVER_CHANNELS, size, seconds, within)
    return taken


@dataclass(frozen=True)
class Slope:
    """A kind of pair whose cost should not depend on a number: how to measure it at one."""

    name: str
    title: str
    measure: Any
    sizes: tuple[int, ...]


SLOPES = (
    Slope(
        "messages",
        "backlog: a pair beside n messages that wait in another channel, µs",
        beside_messages,
        (0, 1_000, 10_000, 50_000),
    ),
    Slope(
        "channels",
        "backlog: a pair on another one of n channels each time, µs",
        on_channels,
        (1, 1_000, 10_000, 100_000),
    ),
    Slope(
        "groups",
        "backlog: a pair beside n groups, µs",
        beside_groups,
        (1, 1_000, 10_000),
    ),
    Slope(
        "group sends",
        "backlog: a send to another one of n groups of one each time, and its receive, µs",
        to_groups,
        (1, 1_000, 10_000),
    ),
)


def backlog(run: Run) -> Iterator[Table]:
    """Each repetition measures all sizes of one layer in turn, so that a flatness compares
    neighbours in time."""
    entrants = [one for one in run.contenders if one.groups and one.queues]
    for slope in SLOPES:
        sizes = run.effort((slope.sizes[0], 10), slope.sizes[:3], slope.sizes)
        yield _slope(run, slope, sizes, entrants)


def _slope(run: Run, slope: Slope, sizes: tuple[int, ...], entrants: list[Contender]) -> Table:
    samples: dict[tuple[str, int], list[float | None]] = {}
    seconds, within = run.effort(0.001, 0.05, 0.3), run.effort(1.0, 1.0, 4.0)
    with Stage(run.loop) as stage:
        players = {
            one.name: stage.enter(one, 2 * max(sizes), CHANNELS, shared=True) for one in entrants
        }
        for number, one in enumerate(interleaved(run.effort(1, 1, 5), entrants)):
            if one.slow and number >= len(entrants):
                continue  # once is enough to see a slope of milliseconds
            for size in sizes:
                taken = slope.measure(players[one.name], size, seconds, within)
                samples.setdefault((one.name, size), []).append(taken)
                if taken is None:
                    break
            players[one.name].play(FILL, "", 0, within)
    rows: list[dict[str, Any]] = []
    for one in entrants:
        row: dict[str, Any] = {"layer": one.name}
        for size in sizes:
            found = [taken for taken in samples.get((one.name, size), []) if taken is not None]
            if found:
                row[f"{size}"] = statistics.median(found)
                row[f"{size} samples"] = found
                if size != sizes[0]:
                    row["flatness"] = paired_ratio(found, row[f"{sizes[0]} samples"])
        rows.append(row)
    return Table(
        slope.name,
        slope.title,
        (
            Column("layer", "layer"),
            *(Column(f"{size}", f"{size:,}", ",.2f") for size in sizes),
            Column("flatness", "last / first", ",.2f"),
        ),
        rows,
        f"left out: what takes longer than {within:g} s to fill",
    )


# -- sizes ----------------------------------------------------------------------------------------

MEGABYTE = 1_000_000


def message_of(size: int) -> dict[str, Any]:
    """A message of about `size` bytes, nearly all of them in one text."""
    return {"type": "chat.message", "room": "lobby", "text": "x" * max(1, size - 40)}


def settle_allocator() -> None:
    """Free a large block once, as happens in any process sooner or later.

    From then on glibc keeps what is freed up to that size. Before, it may give a megabyte back to
    the kernel and fetch it anew, page by page, for each message: that costs more than all the rest,
    and whether it happens depends on what else lies on the heap.
    """
    bytes(31 << 20)


def yardstick(seconds: float, message: Any) -> float:
    """Microseconds that the bytes alone take: packed, into shared memory, out of it, unpacked."""
    import msgpack

    pack, unpack, clock = msgpack.Packer(use_bin_type=True).pack, msgpack.unpackb, time.perf_counter
    area = mmap.mmap(-1, 2 * MEGABYTE)
    buffer = memoryview(area)
    done, start = 0, clock()
    while clock() - start < seconds:
        body = pack(message)
        buffer[: len(body)] = body
        unpack(bytes(buffer[: len(body)]), raw=False)
        done += 1
    return (clock() - start) / done * 1e6


def sizes(run: Run) -> Iterator[Table]:
    """A pair by the size of its message."""
    entrants = [one for one in run.contenders if not one.floor]
    full = (100, 1_000, 10_000, 100_000, MEGABYTE)
    all_sizes = run.effort(full[:2], full[::2], full)
    seconds = run.effort(0.001, 0.05, 0.15)
    samples: dict[tuple[str, int], list[float]] = {}
    with Stage(run.loop) as stage:
        players = {one.name: stage.enter(one, 100, CHANNELS, shared=True) for one in entrants}
        ours = next((one.name for one in entrants if one.ours), None)
        names = [one.name for one in entrants] + ([YARDSTICK] if ours else [])
        for player in players.values():
            player.do(settle_allocator)
        for size in all_sizes:
            message = message_of(size)
            for name in interleaved(run.effort(1, 2, 5), names):
                if name == YARDSTICK:
                    taken = players[ours or ""].do(yardstick, seconds, message)
                else:
                    taken = players[name].play(TIMED, seconds, message)
                samples.setdefault((name, size), []).append(taken)
    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {"layer": name}
        for size in all_sizes:
            row[f"{size}"] = statistics.median(samples[name, size])
            row[f"{size} samples"] = samples[name, size]
        if ours:
            last = all_sizes[-1]
            row["ratio"] = paired_ratio(samples[name, last], samples[YARDSTICK, last])
        rows.append(row)
    yield Table(
        "sizes",
        "sizes: a pair by the size of its message in bytes, µs",
        (
            Column("layer", "layer"),
            *(Column(f"{size}", f"{size:,}", ",.2f") for size in all_sizes),
            Column("ratio", f"{all_sizes[-1]:,}: × {YARDSTICK}", ".2f"),
        ),
        rows,
    )
