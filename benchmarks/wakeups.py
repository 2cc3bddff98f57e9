"""Why wakeups are FIFOs: round trips between two processes by every way there is to wake one.

    python -m benchmarks.wakeups [--quick] [--json FILE]

An eventfd is the lightest way to wake an event loop, but has no name: an unrelated process cannot
open it. A POSIX named semaphore can be opened by anyone, but an event loop cannot watch it: that
takes a thread. A FIFO has both, a name and a descriptor. This measures what that choice costs, or
gains: two processes ring each other in turn, blocking and on asyncio, pinned and wherever the
scheduler puts them. Before that come the primitives that the steps of the store are made of.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks import bells, primitives
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
from benchmarks.processes import Children, pinnings

WARM_UP = 200
NOTE = (
    "unpinned: the scheduler may keep both on one core or not, from one sample to the next; where\n"
    "the pinned columns differ much, the ratios of this one say little"
)

MakeBell = Callable[[bells.Meeting, int], bells.Bell]


@dataclass(frozen=True)
class Way:
    name: str
    make: MakeBell
    eventfd: bool = False


# The first of each is what the others are compared with.
BLOCKING = (
    Way("FIFO", bells.fifo),
    Way("eventfd, inherited", bells.eventfd, eventfd=True),
    Way("named semaphore", bells.semaphore),
    Way("unix datagram", bells.datagram),
)
ASYNCIO = (
    Way("FIFO", bells.fifo),
    Way("eventfd, inherited", bells.eventfd, eventfd=True),
    Way("named semaphore + thread + eventfd", bells.semaphore_thread, eventfd=True),
    Way("unix datagram", bells.datagram),
)


def ping(make: MakeBell, place: bells.Meeting, trips: int) -> float:
    """Ring and wait, `trips` times; the median round trip in seconds."""
    bell = make(place, 0)
    ring, wait, clock = bell.ring, bell.wait, time.perf_counter
    samples = []
    for _ in range(WARM_UP + trips):
        start = clock()
        ring()
        wait()
        samples.append(clock() - start)
    return statistics.median(samples[WARM_UP:])


def pong(make: MakeBell, place: bells.Meeting, trips: int) -> None:
    """The other side: wait and ring."""
    bell = make(place, 1)
    for _ in range(WARM_UP + trips):
        bell.wait()
        bell.ring()


def ping_asyncio(make: MakeBell, place: bells.Meeting, trips: int) -> float:
    async def main() -> float:
        bell = make(place, 0)
        ring, wait, clock = bell.ring, bells.LoopWaiter(bell).wait, time.perf_counter
        samples = []
        for _ in range(WARM_UP + trips):
            start = clock()
            ring()
            await wait()
            samples.append(clock() - start)
        return statistics.median(samples[WARM_UP:])

    return asyncio.run(main())


def pong_asyncio(make: MakeBell, place: bells.Meeting, trips: int) -> None:
    async def main() -> None:
        bell = make(place, 1)
        wait = bells.LoopWaiter(bell).wait
        for _ in range(WARM_UP + trips):
            await wait()
            bell.ring()

    asyncio.run(main())


@dataclass
class Series:
    """One way under one pinning: a fresh pair of processes for each sample."""

    way: Way
    pinning: str
    client: Callable[..., float]
    server: Callable[..., None]
    samples: list[float] = field(default_factory=list)

    def measure(self, trips: int) -> None:
        here, there = pinnings()[self.pinning]
        with bells.meeting() as place, Children() as children:
            children.start(self.server, self.way.make, place, trips, cores=there)
            client = children.start(self.client, self.way.make, place, trips, cores=here)
            self.samples.append(client.result() * 1e6)


def available(way: Way) -> bool:
    if way.eventfd and not hasattr(os, "eventfd"):
        return False
    try:
        import posix_ipc  # noqa: F401
    except ImportError:
        return "semaphore" not in way.name
    return True


def round_trips(repetitions: int, trips: int) -> Iterator[Table]:
    """Two tables, blocking and asyncio, measured together."""
    styles = (
        ("blocking", BLOCKING, ping, pong),
        ("asyncio", ASYNCIO, ping_asyncio, pong_asyncio),
    )
    series = {
        (style, way.name, pinning): Series(way, pinning, client, server)
        for style, ways, client, server in styles
        for way in ways
        if available(way)
        for pinning in pinnings()
    }
    for one in interleaved(repetitions, list(series.values())):
        one.measure(trips)

    columns = [Column("way", "round trip, µs")]
    for pinning in pinnings():
        columns += [Column(pinning, pinning, ".1f"), Column(f"{pinning} ratio", "× FIFO", ".2f")]
    for style, ways, *_ in styles:
        title = f"Wakeups, {style}: round trip of two processes, medians"
        table = Table(f"wakeups-{style}", title, columns, note=NOTE)
        for way in filter(available, ways):
            row: dict[str, object] = {"way": way.name}
            for pinning in pinnings():
                samples = series[style, way.name, pinning].samples
                base = series[style, ways[0].name, pinning].samples
                row[pinning] = statistics.median(samples)
                row[f"{pinning} ratio"] = paired_ratio(samples, base)
                row[f"{pinning} samples"] = samples
            table.rows.append(row)
        yield table


def tables(effort: Effort) -> Iterator[Table]:
    yield primitives.table(repetitions=effort(1, 3, 9), seconds=effort(0.001, 0.01, 0.05))
    yield from round_trips(repetitions=effort(1, 2, 7), trips=effort(10, 1000, 4000))


def main() -> None:
    options = parser(__doc__).parse_args()
    report(tables(effort(options)), options.json)


if __name__ == "__main__":
    from benchmarks import wakeups  # children find its functions under this name

    wakeups.main()
