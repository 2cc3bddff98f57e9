"""``bench``: whether the package is as fast on this machine as it should be, in ten seconds.

The floor for a round trip between two processes is that of a bare FIFO: the kernel wakes one
process, then the other. The layer needs the same and some work of its own, which is counted in
pairs of send and receive. Layer and floor are measured in turns, so that other load on the machine
affects both. The layer is a temporary one; bench must not touch any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click

from .. import IPCChannelLayer, segment
from ..store import native
from .common import json_option, print_json, say, write
from .exits import NOT_WELL

_MESSAGE = {"type": "chat.message", "room": "lobby", "user": "somebody", "text": "hello " * 8}
_TURNS = 5
# Pairs that a round trip may take on top of the floor. Compiled ones are far shorter, and to park
# and to ring is not compiled.
_ALLOWED = 40 if native.LOADED else 12
_SHORTEST = 20  # least number of round trips in a turn


@dataclass(frozen=True)
class RoundTrip:
    """A round trip between two processes on one core or on two, in microseconds."""

    cores: int
    floor_us: float  # of a bare FIFO
    layer_us: float
    pairs_over_floor: float


@dataclass(frozen=True)
class Measured:
    """The figures of one run."""

    pair_us: float  # of a send and a receive in one process
    round_trips: list[RoundTrip]
    messages_per_second: float  # from one process to another


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.5),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Measure for this long.",
)
@json_option
def bench(seconds: float, as_json: bool) -> None:
    """Measure the speed of a layer on this machine, and judge it.

    Compares a round trip between two processes with that of a bare FIFO, the floor of this machine.
    It may take at most twelve pairs of send and receive longer, or forty where these are compiled.
    On a busy machine everything is slower. Exit status 1: it is slower than it should be.
    """
    if not as_json:
        write(f"Measuring for {seconds:g} seconds ...", err=True)
    prefix = f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        found = _measure(prefix, seconds)
    finally:
        segment.destroy(prefix)
    well = all(trip.pairs_over_floor <= _ALLOWED for trip in found.round_trips)
    if as_json:
        print_json({**dataclasses.asdict(found), "allowed": _ALLOWED, "well": well})
    else:
        kind = native.implementation(has_mutex=True)
        write(f"send and receive in one process    {found.pair_us:8.1f} us   {kind}")
        for trip in found.round_trips:
            where = "one core" if trip.cores == 1 else "two cores"
            write(
                f"round trip of two processes        {trip.layer_us:8.1f} us   on {where}\n"
                f"  the same over a bare FIFO        {trip.floor_us:8.1f} us\n"
                + (
                    f"  over the floor                   {trip.pairs_over_floor:8.1f} pairs"
                    if trip.pairs_over_floor
                    else "  which is no more than the floor"
                )
            )
        write(f"from one process to another        {found.messages_per_second:8.0f} /s")
        load = os.getloadavg()[0]
        say(
            f"Verdict: as it should be (at most {_ALLOWED} pairs over the floor)."
            if well
            else f"Verdict: slower than it should be (at most {_ALLOWED} pairs over the floor). Is "
            f"the machine busy (load {load:.1f} on {os.cpu_count()} cores)? Is a debugger, a "
            "profiler or a coverage tool running?"
        )
    sys.exit(0 if well else NOT_WELL)


def _measure(prefix: str, seconds: float) -> Measured:
    layer = IPCChannelLayer(prefix, capacity=1000)
    cores = _cores()
    pair = _pair(layer, seconds * 0.1)
    trips = []
    for count in (2, 1) if len(cores) > 1 else (1,):
        floor, trip = _round_trips(layer, cores[:count], seconds * 0.35)
        over = max(trip - floor, 0.0)  # one that does not sleep may be faster than a FIFO
        trips.append(RoundTrip(count, floor * 1e6, trip * 1e6, over / pair))
    throughput = _throughput(layer, cores[:2], seconds * 0.2)
    layer.close()
    return Measured(pair * 1e6, trips, throughput)


def _pair(layer: IPCChannelLayer, seconds: float) -> float:
    """Seconds for a send and a receive: the median of many short runs."""
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(200):
            layer.send("pair", _MESSAGE)
            layer.receive(["pair"])
        taken.append((time.perf_counter() - began) / 200)
    return statistics.median(taken)


def _round_trips(layer: IPCChannelLayer, cores: list[int], seconds: float) -> tuple[float, float]:
    """Seconds for a round trip over a FIFO and over the layer, measured in turns: the medians."""
    there, back = os.pipe(), os.pipe()

    def echo_fifo() -> None:
        while os.read(there[0], 4):
            os.write(back[1], b"ring")

    def trip_fifo() -> None:
        os.write(there[1], b"ring")
        os.read(back[0], 4)

    def echo_layer() -> None:
        while True:
            channel, message = layer.receive(["there"], block=True)
            if message is not None:
                layer.send("back", message)

    def trip_layer() -> None:
        layer.send("there", _MESSAGE)
        while layer.receive(["back"], block=True)[0] is None:
            pass

    floors: list[float] = []
    trips: list[float] = []
    try:
        with _child(echo_fifo, cores[-1]), _child(echo_layer, cores[-1]), _pinned(cores[0]):
            trip_fifo()
            trip_layer()
            for _ in range(_TURNS):
                for taken, trip in ((floors, trip_fifo), (trips, trip_layer)):
                    end = time.perf_counter() + seconds / _TURNS / 2
                    done = 0
                    while done < _SHORTEST or time.perf_counter() < end:
                        began = time.perf_counter()
                        trip()
                        taken.append(time.perf_counter() - began)
                        done += 1
    finally:
        for fd in (*there, *back):
            os.close(fd)
    return statistics.median(floors), statistics.median(trips)


def _throughput(layer: IPCChannelLayer, cores: list[int], seconds: float) -> float:
    """Messages per second from a process that only sends to this one, which only receives."""

    def send() -> None:
        while True:
            try:
                layer.send("stream", _MESSAGE)
            except layer.ChannelFull:
                time.sleep(0.0005)  # what is measured is how fast messages pass, and no waiting

    with _child(send, cores[-1]), _pinned(cores[0]):
        layer.receive(["stream"], block=True)
        began = time.perf_counter()
        received = 0
        while time.perf_counter() < began + seconds:
            received += layer.receive(["stream"], block=True)[0] is not None
        return received / (time.perf_counter() - began)


def _cores() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return [0]


def _pin(cores: set[int]) -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def _pinned(core: int) -> Iterator[None]:
    before = set(_cores())
    _pin({core})
    try:
        yield
    finally:
        _pin(before)


@contextlib.contextmanager
def _child(function: Callable[[], None], core: int) -> Iterator[None]:
    """Run `function` on a core, in a forked process, until the block ends."""
    pid = os.fork()
    if not pid:
        try:
            _pin({core})
            function()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
