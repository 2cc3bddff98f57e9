"""Where each microsecond of a send and of a receive goes, by function and by line.

    python -m benchmarks.profile [--quick] [--json FILE]

A process sends and receives as fast as it can; py-spy, from outside, notes a thousand times a
second which line it is in. A line's share of the samples is its share of the time of a pair, which
the same process measures before and after. What a line calls in C is part of it; what it calls in
Python is not.

From outside, because a profiler inside would only see the places where Python looks for signals,
and would charge them for what goes on in between. What stops the process for a sample favours the
places where it enters the kernel. There is one on this path: `asyncio.get_running_loop` asks for
the process id. It is replaced while samples are taken, and timed by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import linecache
import os
import re
import shutil
import subprocess
import sys
import tempfile
import timeit
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.layers.contenders import CONTENDERS, Contender
from benchmarks.layers.pair import CHANNELS, TIMED
from benchmarks.layers.stage import Role, Stage, only_loop
from benchmarks.measure import Column, Effort, Table, effort, parser, report
from benchmarks.processes import REPOSITORY

RATE = 1000  # samples a second
LEAST = 0.015  # the share of a pair from which on a line is shown
FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]*):(?P<line>\d+)\)")
CALLS = ("send", "receive")
NEITHER = "the loop"
APART = "get_running_loop"  # what is timed by itself
SECTION = (
    "section"  # the function in asgi_ipc.segment.section that runs what is done under the lock
)
LOOP = "pairs"  # how the functions are named that call send and receive in turn


class Line(NamedTuple):
    """A line of a function, and the call that it works for."""

    call: str
    function: str
    file: str
    line: int

    def text(self) -> str:
        return linecache.getline(os.path.join(REPOSITORY, self.file), self.line).strip()


class Profile(NamedTuple):
    pair: float  # microseconds
    lines: Counter[Line]  # samples
    locked: int  # samples in a section, which is when the lock is held, or nearly
    apart: float  # microseconds of the pair that were timed by themselves

    def samples(self) -> int:
        return sum(self.lines.values())

    def ns(self, count: int) -> float:
        """What so many samples stand for."""
        return count / self.samples() * (self.pair - self.apart) * 1e3


def py_spy() -> str:
    """Where py-spy is: beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        sys.exit("py-spy is not installed: pip install py-spy (make bench installs all)")
    return found


def sample(one: Contender, seconds: float) -> Profile:
    program = py_spy()
    with Stage("asyncio") as stage, tempfile.TemporaryDirectory(prefix="profile-") as folder:
        player = stage.enter(one, 100, CHANNELS)
        before = player.play(TIMED, seconds / 5)
        apart = player.play(TIME_APART)
        player.do(replace_apart)
        player.begin(TIMED, seconds * 1.2 + 1.0)
        output = Path(folder) / "stacks"
        options = ("--rate", str(RATE), "--duration", str(max(1, round(seconds))))
        done = subprocess.run(
            [program, "record", *options, "--format", "raw", "--output", output, "--full-filenames"]
            + ["--pid", str(player.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        player.result()
        player.do(put_back)
        after = player.play(TIMED, seconds / 5)
        if done.returncode or not output.exists():
            sys.exit(
                f"py-spy could not look into a process (is that allowed here?):\n{done.stderr}"
            )
        return _read(output.read_text(encoding="utf-8"), (before + after) / 2, apart)


def time_apart(layer: Any) -> float:
    return 0.0


async def time_apart_asyncio(layer: Any) -> float:
    """Microseconds of one `asyncio.get_running_loop`."""
    return min(timeit.repeat(asyncio.get_running_loop, number=100_000, repeat=5)) * 10


TIME_APART = Role(time_apart, time_apart_asyncio)
_original = asyncio.get_running_loop


def replace_apart() -> None:
    """In the process of the layer: the same answer, without the system call."""
    asyncio.get_running_loop = itertools.repeat(only_loop()).__next__  # type: ignore[assignment]


def put_back() -> None:
    asyncio.get_running_loop = _original


def _read(stacks: str, pair: float, apart: float) -> Profile:
    """Sum up py-spy's raw format: a line for each stack, frames outermost first, and its count."""
    lines: Counter[Line] = Counter()
    locked = 0
    for row in stacks.splitlines():
        stack, _, times = row.rpartition(" ")
        frames = [found for frame in stack.split(";") if (found := FRAME.match(frame))]
        names = [frame["function"].rpartition(".")[2] for frame in frames]
        loop = next((n for n, name in enumerate(names) if name.startswith(LOOP)), None)
        if loop is None:
            continue  # before or after the loop
        call = next((name for name in names[loop:] if name in CALLS), NEITHER)
        file = os.path.relpath(frames[-1]["file"], REPOSITORY)
        line = Line(call, frames[-1]["function"], file, int(frames[-1]["line"]))
        lines[line] += int(times)
        locked += int(times) * (SECTION in names)
    used = any(APART in line.text() for line in lines)
    return Profile(pair, lines, locked, apart if used else 0.0)


def tables(effort: Effort) -> Iterator[Table]:
    held = []
    for one in CONTENDERS.values():
        if one.ours:
            profile = sample(one, effort(1.0, 4.0, 12.0))
            yield by_function(one, profile)
            yield by_line(one, profile)
            held.append(under_lock(one, profile))
    yield Table(
        "profile-lock",
        "profile: how long a pair holds the lock",
        (
            Column("layer", "layer"),
            Column("pair", "a pair, µs", ".2f"),
            Column("held", "of which with the lock, µs", ".2f"),
            Column("share", "%", ".0f"),
            Column("ceiling", "messages a second if that were all", ",.0f"),
            Column("busy", "processes that keep one lock busy", ".1f"),
        ),
        held,
        "from the call that takes the lock to the one that gives it back, both included",
    )


def by_function(one: Contender, profile: Profile) -> Table:
    functions: Counter[tuple[str, str, str]] = Counter()
    for line, count in profile.lines.items():
        functions[line.call, line.function, line.file] += count
    rows = [
        _row(profile, call, profile.ns(count), function, file.removesuffix(".py").replace("/", "."))
        for (call, function, file), count in functions.items()
        if count >= LEAST / 3 * profile.samples()
    ]
    if profile.apart:
        rows.append(_row(profile, CALLS[1], profile.apart * 1e3, APART, "asyncio"))
    return Table(
        f"profile-{one.contract}",
        f"profile: a pair of {one.name} by function, {profile.pair:.2f} µs",
        (
            Column("call", "call"),
            Column("what", "function"),
            Column("where", "module"),
            Column("ns", "ns", ",.0f"),
            Column("share", "%", ".1f"),
        ),
        _sorted(rows),
        "the time in a function itself and in what it calls in C",
    )


def by_line(one: Contender, profile: Profile) -> Table:
    return Table(
        f"profile-{one.contract}-lines",
        f"profile: the lines of a pair of {one.name} that take at least {LEAST:.1%} of it",
        (
            Column("call", "call"),
            Column("ns", "ns", ",.0f"),
            Column("share", "%", ".1f"),
            Column("where", "line"),
            Column("what", "what stands there"),
        ),
        _sorted(
            _row(profile, line.call, profile.ns(count), line.text(), f"{line.file}:{line.line}")
            for line, count in profile.lines.items()
            if line.call != NEITHER and count >= LEAST * profile.samples()
        ),
    )


def under_lock(one: Contender, profile: Profile) -> dict[str, Any]:
    held = profile.ns(profile.locked) / 1e3
    share = held / profile.pair
    row: dict[str, Any] = {"layer": one.name, "pair": profile.pair, "share": share * 100}
    if held:
        row.update(held=held, ceiling=1e6 / held, busy=1 / share)
    return row


def _row(profile: Profile, call: str, ns: float, what: str, where: str) -> dict[str, Any]:
    share = ns / profile.pair / 10
    return {"call": call, "what": what, "where": where, "ns": ns, "share": share}


def _sorted(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sends, the receives, the rest; of each the most expensive first."""
    order = (*CALLS, NEITHER)
    return sorted(rows, key=lambda row: (order.index(row["call"]), -row["ns"]))


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    report(tables(effort(options)), options.json)


if __name__ == "__main__":
    from benchmarks import profile  # children find its functions under this name

    profile.main()
