"""`idle`: what four processes cost that are blocked in receive and get nothing.

Counted by the kernel, in /proc/PID/task/*/schedstat: time on a core and times put on one, over all
threads of a process. Linux only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Any

from benchmarks.layers.contenders import Contender, Role, play, prefix_for
from benchmarks.measure import Column, Table
from benchmarks.processes import SPAWN, Child, Children

SETTLE = 1.0  # seconds from the last word of a process until it counts as blocked
PROCESSES = 4


def listen(layer: Any, ready: Event, channel: str) -> None:
    ready.set()
    while layer.receive([channel], True)[0] is None:
        pass
    raise AssertionError("an idle channel got a message")


async def listen_asyncio(layer: Any, ready: Event, channel: str) -> None:
    ready.set()
    await layer.receive(channel)
    raise AssertionError("an idle channel got a message")


LISTEN = Role(listen, listen_asyncio)


def usage(pid: int) -> tuple[int, int]:
    """Nanoseconds on a core and number of times put on one, of all threads of a process."""
    spent = times = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            on_core, _, slices = map(int, file.read().split())
        spent += on_core
        times += slices
    return spent, times


def measure(kinds: list[Contender], loop: str, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each contender of one store, sharing one prefix, four processes in all."""
    with prefix_for(kinds[0]) as prefix, Children() as children:
        started: list[tuple[Contender, Child]] = []
        for number in range(PROCESSES):
            one, ready = kinds[number % len(kinds)], SPAWN.Event()
            role = (LISTEN, ready, f"idle-{number}")
            started.append((one, children.start(play, one.name, loop, prefix, 100, *role)))
            if not ready.wait(30):
                raise TimeoutError(f"{one.name}: not ready to receive within 30 s")
        time.sleep(SETTLE)
        before = [usage(child.pid) for _, child in started]
        time.sleep(seconds)
        after = [usage(child.pid) for _, child in started]
    for kind in kinds:
        pairs = [(b, a) for (one, _), b, a in zip(started, before, after) if one is kind]
        spent = [(a[0] - b[0]) / seconds for b, a in pairs]
        times = [(a[1] - b[1]) / seconds for b, a in pairs]
        yield {
            "layer": kind.name,
            "processes": len(pairs),
            "spent": sum(spent) / len(spent) / 1e3,
            "share": sum(spent) / len(spent) / 1e7,
            "times": sum(times) / len(times),
        }


def idle(contenders: list[Contender], loop: str, quick: bool) -> Iterator[Table]:
    if not os.path.exists("/proc/self/schedstat"):
        yield Table("idle", (), note="left out: there is no /proc/PID/schedstat here")
        return
    stores: dict[str, list[Contender]] = {}
    for one in contenders:
        if not one.local:
            stores.setdefault(one.store, []).append(one)
    seconds = 2.0 if quick else 5.0
    yield Table(
        f"idle: four processes blocked in receive, over {seconds:g} s",
        (
            Column("layer", "layer"),
            Column("processes", "processes", "d"),
            Column("spent", "µs of CPU a second, each", ",.1f"),
            Column("share", "% of a core, each", ".4f"),
            Column("times", "wakeups a second, each", ".1f"),
        ),
        [row for kinds in stores.values() for row in measure(kinds, loop, seconds)],
    )
