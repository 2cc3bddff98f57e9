"""`wakeups`: why wakeups are FIFOs. Round trips between two processes by every way to wake one.

An eventfd is the lightest way to wake an event loop, but has no name: an unrelated process cannot
open it. Any process can open a POSIX named semaphore, but an event loop cannot watch it without a
thread. A FIFO has both, a name and a descriptor. This measures what that choice costs, or gains:
two processes ring each other in turn, blocking and on asyncio, pinned and wherever the scheduler
puts them.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from benchmarks.layers.byhand import LoopWait
from benchmarks.layers.contracts import run_to_end
from benchmarks.measure import Column, Row, Table, interleaved, paired_ratio
from benchmarks.processes import ChildFailed, Cores, pin, pinnings
from benchmarks.workloads import Run

WARM_UP = 200
WITHIN = 60.0  # seconds for all trips of a sample
ONE = (1).to_bytes(8, "little")  # what an eventfd takes
BLOCKING, ASYNCIO = "blocking", "asyncio"


class Bell(NamedTuple):
    """One side's end: `ring` wakes the other side, `wait` sleeps until that has rung. Once `fd` is
    readable, `wait` returns at once."""

    ring: Callable[[], object]
    wait: Callable[[], object]
    fd: int = -1


# Makes what two sides share, before they are forked. What it returns makes the end of a side, in
# the process of that side.
Way = Callable[[ExitStack], Callable[[int], Bell]]


def _descriptors(fds: list[int], word: bytes) -> Callable[[int], Bell]:
    def end(side: int) -> Bell:
        mine, theirs = fds[side], fds[1 - side]
        return Bell(partial(os.write, theirs, word), partial(os.read, mine, len(word)), mine)

    return end


def fifo(stack: ExitStack) -> Callable[[int], Bell]:
    """Two FIFOs, each opened for both, so that neither side depends on the other."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wakeups-"))
    fds = []
    for side in "01":
        os.mkfifo(os.path.join(folder, side))
        fds.append(os.open(os.path.join(folder, side), os.O_RDWR))
        stack.callback(os.close, fds[-1])
    return _descriptors(fds, b"!")


def eventfd(stack: ExitStack) -> Callable[[int], Bell]:
    """Two eventfds. They have no name: only a process that inherits them can take part."""
    fds = [os.eventfd(0), os.eventfd(0)]
    for fd in fds:
        stack.callback(os.close, fd)
    return _descriptors(fds, ONE)


def datagram(stack: ExitStack) -> Callable[[int], Bell]:
    """Two unix datagram sockets."""
    pair = [stack.enter_context(one) for one in socket.socketpair(type=socket.SOCK_DGRAM)]

    def end(side: int) -> Bell:
        mine = pair[side]
        return Bell(partial(mine.send, b"!"), partial(mine.recv, 1), mine.fileno())

    return end


def semaphore(stack: ExitStack) -> Callable[[int], Bell]:
    """Two POSIX named semaphores. There is no descriptor for an event loop to watch."""
    import posix_ipc

    pair = [posix_ipc.Semaphore(None, posix_ipc.O_CREX) for _ in range(2)]
    for one in pair:
        one.unlink()
        stack.callback(one.close)
    return lambda side: Bell(pair[1 - side].release, pair[side].acquire)


def semaphore_thread(stack: ExitStack) -> Callable[[int], Bell]:
    """The semaphores for an event loop: a thread waits, and passes each ring on to an eventfd."""
    bare = semaphore(stack)

    def end(side: int) -> Bell:
        bell, fd = bare(side), os.eventfd(0)

        def forward() -> None:
            while True:
                bell.wait()
                os.write(fd, ONE)

        threading.Thread(target=forward, daemon=True).start()
        return Bell(bell.ring, partial(os.read, fd, 8), fd)

    return end


# The first of each is what the others are compared with.
WAYS: dict[str, dict[str, Way]] = {
    BLOCKING: {
        "FIFO": fifo,
        "eventfd, inherited": eventfd,
        "named semaphore": semaphore,
        "unix datagram": datagram,
    },
    ASYNCIO: {
        "FIFO": fifo,
        "eventfd, inherited": eventfd,
        "named semaphore + thread + eventfd": semaphore_thread,
        "unix datagram": datagram,
    },
}
NEEDS_EVENTFD = (eventfd, semaphore_thread)


async def ping(bell: Bell, wait: Callable[[], Awaitable[object]], trips: int) -> float:
    """Ring and wait, `trips` times; the median round trip in seconds."""
    ring, clock = bell.ring, time.perf_counter
    samples = []
    for _ in range(WARM_UP + trips):
        start = clock()
        ring()
        await wait()
        samples.append(clock() - start)
    return statistics.median(samples[WARM_UP:])


async def pong(bell: Bell, wait: Callable[[], Awaitable[object]], trips: int) -> None:
    """The other side: wait and ring."""
    for _ in range(WARM_UP + trips):
        await wait()
        bell.ring()


def _side(end: Callable[[int], Bell], side: int, style: str, trips: int, cores: Cores) -> object:
    """The life of one of the two processes."""
    pin(cores)
    bell, role = end(side), (ping, pong)[side]

    async def block() -> object:
        return bell.wait()

    async def main() -> object:
        return await role(bell, LoopWait(bell.fd, bell.wait), trips)

    return run_to_end(role(bell, block, trips)) if style == BLOCKING else asyncio.run(main())


def round_trip(style: str, way: str, pinning: str, trips: int) -> float:
    """Microseconds, by a fresh pair of processes."""
    fork = multiprocessing.get_context("fork")  # they inherit what has no name
    results, result = fork.Pipe(duplex=False)
    with results, result, ExitStack() as stack:
        end = WAYS[style][way](stack)

        def run_side(side: int, cores: Cores) -> None:
            result.send(_side(end, side, style, trips, cores))

        for side, cores in enumerate(pinnings()[pinning]):
            process = fork.Process(target=run_side, args=(side, cores))
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        answers = []
        for _ in range(2):
            if not results.poll(WITHIN):
                raise ChildFailed(f"{way}, {style}, {pinning}: no round trips in {WITHIN:g} s")
            answers.append(results.recv())
    return float(next(answer for answer in answers if answer is not None)) * 1e6


def available(way: Way) -> bool:
    return way not in NEEDS_EVENTFD or hasattr(os, "eventfd")


def wakeups(run: Run) -> Iterator[Table]:
    """the ways to wake another process, which are why asgi_ipc uses FIFOs"""
    trips = run.effort(10, 1_000, 4_000)
    ways = run.effort(["unpinned"], [*pinnings()], [*pinnings()])
    plan = [
        (style, name, pinning)
        for style, known in WAYS.items()
        for name, way in known.items()
        if available(way)
        for pinning in ways
    ]
    samples: dict[tuple[str, str, str], list[float]] = {entry: [] for entry in plan}
    for entry in interleaved(run.effort(1, 2, 5), plan):
        samples[entry].append(round_trip(*entry, trips))

    columns = [Column("way", "round trip, µs")]
    for pinning in ways:
        columns += [Column(pinning, pinning, ".1f"), Column(f"{pinning} ratio", "× FIFO", ".2f")]
    for style, known in WAYS.items():
        rows: list[Row] = []
        for name in (name for name, way in known.items() if available(way)):
            row: Row = {"way": name}
            for pinning in ways:
                row[f"{pinning} samples"] = mine = samples[style, name, pinning]
                row[pinning] = statistics.median(mine)
                row[f"{pinning} ratio"] = paired_ratio(mine, samples[style, "FIFO", pinning])
            rows.append(row)
        yield Table(
            f"wakeups-{style}",
            f"Wakeups, {style}: round trip of two processes, medians",
            columns,
            rows,
            "unpinned: the scheduler may choose one core or two for each sample; where the pinned\n"
            "columns differ much, the ratios of this column mean little",
        )
