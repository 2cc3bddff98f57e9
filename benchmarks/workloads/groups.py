"""`broadcast`: a send to a group of sockets that live in another process: the call, and when the
last socket has it; with one that leaves and joins before some of the sends.

Each socket has a process-specific channel of its own. In Channels 4 a coroutine waits for each, and
receives again at once, as a consumer does; in Channels 1 one loop receives for all of them, as its
server does.

The sender works for a moment before its call, as a process does that is busy.
What the call takes a process that has just slept, and finds its code and data in no cache, is
measured apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from benchmarks.layers import redis_server
from benchmarks.layers.contenders import Contender
from benchmarks.layers.contracts import CHAT, SETTLE, Layer
from benchmarks.layers.stage import Stage
from benchmarks.measure import Column, Row, Table, against
from benchmarks.processes import spent
from benchmarks.workloads import Run
from benchmarks.workloads.pair import CHANNEL, CHANNELS

GROUP, READY = "everybody", "ready"
AT_WORK = 0.005  # seconds that a sender works before its call
FILLED_WITHIN = 20.0  # seconds; a layer that takes longer to fill a group is left out

# Kinds of rounds: nothing changed before the send, a socket left and joined, the sender slept.
UNCHANGED, CHANGED, RESTED = KINDS = ("call", "after", "rested")


class Joined(NamedTuple):
    names: list[str]
    each: float  # seconds of a join


class Round(NamedTuple):
    end: float  # when the last socket had the message
    leave: float  # seconds; 0 where nobody left
    join: float
    cpu: float  # seconds of CPU until then


# -- the process of the sockets -------------------------------------------------------------------


async def join(layer: Layer, count: int) -> Joined | None:
    """Make the members; None if that takes too long."""
    names = await layer.new_channels(count)
    start = time.perf_counter()
    for name in names:
        await layer.group_add(GROUP, name)
        if time.perf_counter() - start > FILLED_WITHIN:
            return None
    return Joined(names, (time.perf_counter() - start) / count)


async def hear(layer: Layer, names: list[str], kinds: list[str]) -> list[Round]:
    """Receive one message for each socket in each round."""
    clock, rounds = time.perf_counter, []
    for number, kind in enumerate(kinds):
        leave = back = 0.0
        if kind == CHANGED:
            name, start = names[number % len(names)], clock()
            await layer.group_discard(GROUP, name)
            between = clock()
            await layer.group_add(GROUP, name)
            leave, back = between - start, clock() - between
        before = time.process_time()
        end = await layer.receive_each(names, READY)
        rounds.append(Round(end, leave, back, time.process_time() - before))
    await layer.receive_no_more()
    return rounds


# -- the process that sends -----------------------------------------------------------------------


class Call(NamedTuple):
    start: float
    end: float
    cpu: float  # seconds of CPU


async def send(layer: Layer, kinds: list[str]) -> list[Call]:
    """The call of each round."""
    calls = []
    for kind in kinds:
        await layer.receive(READY)
        await layer.sleep(SETTLE)
        start = began = time.monotonic()
        while kind != RESTED and start - began < AT_WORK:
            await layer.pairs(CHANNELS, CHAT)
            start = time.monotonic()
        before = time.process_time()
        await layer.group_send(GROUP, CHAT)
        calls.append(Call(start, time.monotonic(), time.process_time() - before))
    return calls


def measure(run: Run, one: Contender, sockets: int, rounds: int) -> Row | None:
    """The samples of a contender by kind, in ms; None if its group takes too long to fill."""
    kinds = [kind for kind in KINDS for _ in range(rounds)]
    with Stage() as stage:
        owner = stage.enter(one, 2 * sockets)
        sender = stage.enter(one, 2 * sockets, listens=[READY, CHANNEL])
        joined: Joined | None = owner.play(join, sockets)
        if joined is None:
            return None
        redis = spent(redis_server.pids())
        sender.begin(send, kinds)
        owner.begin(hear, joined.names, kinds)
        calls: list[Call] = sender.result()
        heard: list[Round] = owner.result()
        redis = spent(redis_server.pids()) - redis
    changes = [each for each, kind in zip(heard, kinds) if kind == CHANGED]
    took = {
        kind: [call.end - call.start for call, this in zip(calls, kinds) if this == kind]
        for kind in KINDS
    }
    took["last"] = [each.end - call.start for each, call in zip(heard, calls)]
    took["cpu"] = [each.cpu + call.cpu + redis / len(kinds) for each, call in zip(heard, calls)]
    took["leave"] = [each.leave for each in changes]
    took["join"] = [each.join for each in changes]
    took["fill"] = [joined.each]
    return {key: [each * 1e3 for each in some] for key, some in took.items()}


def broadcast(run: Run) -> Iterator[Table]:
    """a group send to 5,000 sockets of another process, with joins and leaves"""
    sockets = run.effort(20, 5_000, 5_000)
    rows: list[Row] = []
    for one in run.contenders:
        if not one.groups or one.local:
            continue
        rounds = run.effort(1, 1, 2) if one.slow else run.effort(1, 3, 9)
        for samples in run.attempt(one.name, partial(measure, run), one, sockets, rounds):
            known = {key: statistics.median(some) for key, some in (samples or {}).items() if some}
            rows.append({"layer": one.name, "samples": samples, **known})
    yield Table(
        "broadcast",
        f"broadcast: a group send to {sockets:,} sockets of another process, ms",
        (
            Column("layer", "layer"),
            Column("call", "the call", ",.3f"),
            Column("last", "last delivery", ",.1f"),
            *against(rows, "last", "channels_redis-pubsub"),
            Column("cpu", "CPU of all", ",.1f"),
            Column("after", "the call after a leave and a join", ",.3f"),
            Column("rested", "the call after a sleep", ",.3f"),
            Column("fill", "a join, while it grows", ",.3f"),
            Column("leave", "a leave", ",.3f"),
            Column("join", "a join", ",.3f"),
        ),
        rows,
        f"no figures: filling the group takes longer than {FILLED_WITHIN:g} s",
    )
