"""`pair`: one process sends a chat event and receives it. `machines`: the same with the layer for
several machines, beside channels_redis alone.

All layers of one interpreter are measured in turn in one process, so that whatever slows the
machine slows them all. Nothing waits here: this measures the work of the layer alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from benchmarks.layers.contenders import CONTENDERS, IN_MEMORY, LOCAL_AND_REMOTE, Contender
from benchmarks.layers.contracts import CHAT, Layer, Message
from benchmarks.layers.stage import Player, Stage
from benchmarks.measure import Column, Row, Table, interleaved, paired_ratio
from benchmarks.workloads import Run

CHANNEL = "chat"
CHANNELS = (CHANNEL,)


async def timed(
    layer: Layer, seconds: float, channels: Sequence[str] = CHANNELS, message: Message = CHAT
) -> float:
    """Microseconds for a pair, of as many pairs as fit into `seconds`, on each channel in turn.

    Growing runs find out how many those are. They are the warm-up, and take a tenth of the time.
    """
    count, spent = 1, await layer.pairs(channels[:1], message)
    while spent < seconds / 20:
        count *= 4
        spent = await layer.pairs(islice(cycle(channels), count), message)
    count = max(1, int(seconds / spent * count))
    return await layer.pairs(islice(cycle(channels), count), message) / count * 1e6


async def check(layer: Layer) -> None:
    """What was sent must arrive as it was: a layer that drops messages would win every race."""
    await layer.send(CHANNEL, CHAT)
    if await layer.receive(CHANNEL) != CHAT:
        raise AssertionError("the message that arrived is not the one that was sent")


def together(stage: Stage, entrants: Sequence[Contender], capacity: int) -> dict[str, Player]:
    """The layers, those of one interpreter in one process."""
    return {
        one.name: stage.enter(one, capacity, listens=CHANNELS, sends=CHANNELS, shared=True)
        for one in entrants
    }


def pair(run: Run) -> Iterator[Table]:
    """send + receive of a chat event in one process, against InMemory"""
    # Many short repetitions: load that comes and goes then meets all layers alike. The asyncio
    # floor takes no part: it waits, and here nothing does.
    entrants = [one for one in run.contenders if not one.floor or one.contract == "blocking"]
    samples: dict[str, list[float]] = {one.name: [] for one in entrants}
    seconds = run.effort(0.001, 0.05, 0.1)
    with Stage() as stage:
        players = together(stage, entrants, 100)
        for one in entrants:
            if not one.floor:
                players[one.name].play(check)
        for one in interleaved(run.effort(1, 5, 25), entrants):
            samples[one.name].append(players[one.name].play(timed, seconds))
    rows: list[Row] = []
    for name, taken in samples.items():
        row: Row = {"layer": name, "samples": taken}
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


# -- several machines -----------------------------------------------------------------------------

REDIS, NORMAL, OWN = "channels_redis", "normal", "process-specific"
MACHINES = {  # by their names in the table
    REDIS: CONTENDERS[REDIS],
    "local and remote": LOCAL_AND_REMOTE,
    "asgi_ipc alone": CONTENDERS["asgi_ipc-asyncio"],
}


async def timed_on(layer: Layer, kind: str, seconds: float) -> float:
    """Microseconds for a pair on a kind of channel."""
    return await timed(layer, seconds, CHANNELS if kind == NORMAL else await layer.new_channels(1))


def machines(run: Run) -> Iterator[Table]:
    """a pair of the layer for several machines, against channels_redis alone"""
    plan = [(name, kind) for kind in (NORMAL, OWN) for name in MACHINES]
    samples: dict[tuple[str, str], list[float]] = {entry: [] for entry in plan}
    missing = [one.missing() for one in MACHINES.values() if one.missing()]
    if not missing:
        with Stage() as stage:
            players = together(stage, list(MACHINES.values()), 100)
            for name, kind in interleaved(run.effort(1, 3, 15), plan):
                player, seconds = players[MACHINES[name].name], run.effort(0.001, 0.05, 0.3)
                samples[name, kind].append(player.play(timed_on, kind, seconds))
    rows = [
        {
            "layer": f"{name}, {kind}",
            "samples": mine,
            "pair": statistics.median(mine),
            "ratio": paired_ratio(samples[REDIS, kind], mine),
        }
        for (name, kind), mine in samples.items()
        if mine
    ]
    yield Table(
        "remote-pair",
        "several machines: send + receive in one process, µs",
        (
            Column("layer", "layer, channel"),
            Column("pair", "median", ".1f"),
            Column("ratio", "channels_redis takes ×", ".1f"),
        ),
        rows,
        f"left out: {missing[0]}" if missing else "",
    )
