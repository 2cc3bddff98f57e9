"""Several machines: `asgi_ipc.aio.LocalAndRemoteChannelLayer` beside channels_redis alone.

    python -m benchmarks.remote [--quick] [--json FILE]

The pair of send and receive, on a normal and on a process-specific channel; and what a group send
costs the Redis server, for some machines, processes and sockets. Machines are prefixes of this one,
so the figures are without any network between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator
from itertools import repeat
from typing import Any

from benchmarks.layers import redis_server
from benchmarks.measure import (
    Column,
    Effort,
    Table,
    effort,
    interleaved,
    paired_ratio,
    parser,
    report,
)
from benchmarks.primitives import CHAT

CORE = "channels_redis.core.RedisChannelLayer"
PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"


def remote(port: int, backend: str = CORE) -> dict[str, Any]:
    config = {"hosts": [f"redis://127.0.0.1:{port}"], "capacity": 10_000, "expiry": 3600}
    return {"BACKEND": backend, "CONFIG": config}


@contextlib.asynccontextmanager
async def machines(port: int, numbers: list[int], backend: str = CORE) -> AsyncIterator[list[Any]]:
    """Layers of the mode, one for each number, which is that of its machine."""
    from asgi_ipc import segment
    from asgi_ipc.aio import LocalAndRemoteChannelLayer

    prefixes = [f"benchmark-{os.getpid()}-{number}" for number in numbers]
    layers = [
        LocalAndRemoteChannelLayer(
            remote(port, backend), {"prefix": prefix, "expiry": 3600, "capacity": 10_000}
        )
        for prefix in prefixes
    ]
    try:
        yield layers
    finally:
        for layer in layers:
            await layer.close()
        for prefix in set(prefixes):
            segment.destroy(prefix)


@contextlib.asynccontextmanager
async def redis_alone(port: int, count: int) -> AsyncIterator[list[Any]]:
    """Layers of channels_redis, each as one process would have it."""
    from channels_redis.core import RedisChannelLayer

    layers = [RedisChannelLayer(**remote(port)["CONFIG"]) for _ in range(count)]
    for layer in layers:
        layer.brpop_timeout = 2  # redis-py 8 gives up reading after 5 seconds
    try:
        yield layers
    finally:
        await layers[0].flush()
        for layer in layers:
            await layer.close_pools()


# -- pair ------------------------------------------------------------------------------------------


async def pairs(layer: Any, channel: str, seconds: float) -> float:
    """Microseconds for one send and one receive."""
    count, taken = 20, 0.0
    for _ in range(2):
        began = time.perf_counter()
        for _ in repeat(None, count):
            await layer.send(channel, CHAT)
            await layer.receive(channel)
        taken = (time.perf_counter() - began) / count
        count = max(20, int(seconds / taken))
    return taken * 1e6


async def pair(port: int, effort: Effort) -> Table:
    from asgi_ipc import segment
    from asgi_ipc.aio import IPCChannelLayer

    alone = f"benchmark-{os.getpid()}-alone"
    async with machines(port, [1]) as (mode,), redis_alone(port, 1) as (redis,):
        ipc = IPCChannelLayer(prefix=alone, expiry=3600)
        entrants = {
            "channels_redis, normal": (redis, "chat"),
            "local and remote, normal": (mode, "chat"),
            "asgi_ipc alone, normal": (ipc, "chat"),
            "channels_redis, process-specific": (redis, await redis.new_channel()),
            "local and remote, process-specific": (mode, await mode.new_channel()),
            "asgi_ipc alone, process-specific": (ipc, await ipc.new_channel()),
        }
        samples: dict[str, list[float]] = {name: [] for name in entrants}
        for name in interleaved(effort(1, 3, 15), list(entrants)):
            samples[name].append(await pairs(*entrants[name], effort(0.001, 0.05, 0.3)))
        await ipc.close()
        segment.destroy(alone)
    rows = [
        {
            "layer": name,
            "samples": taken,
            "pair": statistics.median(taken),
            "ratio": paired_ratio(samples["channels_redis," + name.partition(",")[2]], taken),
        }
        for name, taken in samples.items()
    ]
    return Table(
        "remote-pair",
        "several machines: send + receive in one process, µs",
        (
            Column("layer", "layer, channel"),
            Column("pair", "median", ".1f"),
            Column("ratio", "channels_redis takes ×", ".1f"),
        ),
        rows,
    )


# -- groups ----------------------------------------------------------------------------------------


def commands() -> dict[str, int]:
    """How often each command was called, those inside scripts included."""
    called = {}
    for line in redis_server.command("INFO commandstats").splitlines():
        if not line.startswith("cmdstat_"):
            continue
        name, _, figures = line.partition(":")
        called[name[8:]] = int(figures.partition("calls=")[2].partition(",")[0])
    return called


async def cost(layers: list[Any], sockets: int, sends: int) -> dict[str, Any]:
    """What `sends` group sends of the first layer cost, until every socket has them all."""
    listening = []
    for layer in layers:
        for _ in range(sockets):
            channel = await layer.new_channel()
            await layer.group_add("room", channel)
            listening.append((layer, channel))

    async def listen(layer: Any, channel: str) -> None:
        for _ in range(sends):
            await layer.receive(channel)

    reading = [asyncio.ensure_future(listen(*one)) for one in listening]
    await asyncio.sleep(0.1)
    before = commands()
    began = time.perf_counter()
    for number in range(sends):
        await layers[0].group_send("room", {**CHAT, "number": number})
    call = time.perf_counter() - began
    await asyncio.gather(*reading)
    reached = time.perf_counter() - began
    after = commands()
    called = {name: (after[name] - before.get(name, 0)) / sends for name in after}
    return {
        "commands": sum(calls for name, calls in called.items() if name not in ("info", "quit")),
        "by command": called,
        "call": call / sends * 1e3,
        "reached": reached / sends * 1e3,
    }


async def groups(port: int, effort: Effort) -> Table:
    sends = effort(2, 20, 200)
    rows = []
    for count, processes, sockets in ((2, 1, 1), (2, 1, 50), (2, 4, 50), (4, 4, 50)):
        numbers = [machine for machine in range(count) for _ in range(processes)]
        where = f"{count} × {processes} × {sockets}"
        async with redis_alone(port, len(numbers)) as layers:
            row = await cost(layers, sockets, sends)
            rows.append({"where": where, "layer": "channels_redis", **row})
        for backend in (CORE, PUBSUB):
            async with machines(port, numbers, backend) as layers:
                row = await cost(layers, sockets, sends)
                name = f"local and remote, {backend.split('.')[1]}"
                rows.append({"where": where, "layer": name, **row})
    return Table(
        "remote-groups",
        "several machines: a group send to all their sockets",
        (
            Column("where", "machines × processes × sockets"),
            Column("layer", "layer"),
            Column("commands", "Redis commands", ".1f"),
            Column("call", "the call, ms", ".2f"),
            Column("reached", "all have it, ms", ".2f"),
        ),
        rows,
        "Redis commands: of sending and receiving together, for one group send. Everything runs in "
        "one process here, so the times are of all processes together.",
    )


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    if shutil.which("redis-server") is None:
        sys.exit("redis-server is not installed (on Debian and Ubuntu: apt-get install it)")
    with redis_server.running():
        port, length = redis_server.port(), effort(options)
        report((asyncio.run(workload(port, length)) for workload in (pair, groups)), options.json)


if __name__ == "__main__":
    main()
