"""From samples to tables: interleaving, medians, paired ratios, printing, JSON.

No benchmark decides for itself how to average or to print; none of the code here measures anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

T = TypeVar("T")

PACKAGES = ("posix_ipc", "msgpack", "channels", "channels_redis", "redis", "pyzmq", "uvloop")


@dataclass(frozen=True)
class Column:
    """One printed column: the key in the row, the heading, and the format of a figure."""

    key: str
    heading: str
    form: str = ""

    def text(self, row: dict[str, Any]) -> str:
        value = row.get(self.key)
        return "" if value is None else format(value, "" if isinstance(value, str) else self.form)


@dataclass
class Table:
    """Rows under a title. Keys of a row without a column are for `--json` only (raw samples).

    `name` is how the report finds it in the JSON file.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def __str__(self) -> str:
        if not self.rows:
            return f"\n{self.title}\n{self.note or 'no layer here takes part'}"
        cells = [[column.heading for column in self.columns]]
        cells += [[column.text(row) for column in self.columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["", self.title, "=" * len(self.title)]
        for number, line in enumerate(cells):
            padded = [
                cell.rjust(width) if column.form else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns)
            ]
            lines.append("  ".join(padded).rstrip())
            if number == 0:
                lines.append("  ".join("-" * width for width in widths).rstrip())
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


@dataclass(frozen=True)
class Effort:
    """How long to measure: 0 that it runs at all, 1 quick, 2 in full."""

    level: int

    def __call__(self, tiny: T, quick: T, full: T) -> T:
        return (tiny, quick, full)[self.level]


def interleaved(repetitions: int, contenders: Sequence[T]) -> Iterator[T]:
    """Every contender once in each repetition, each repetition starting with another one."""
    for repetition in range(repetitions):
        first = repetition % len(contenders) if contenders else 0
        yield from contenders[first:]
        yield from contenders[:first]


def paired_ratio(samples: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios within each repetition: load that hits both cancels out."""
    return statistics.median(one / other for one, other in zip(samples, base))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered samples lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def environment() -> dict[str, Any]:
    """What the figures depend on, for the heading and for `--json`."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "load": [round(load, 2) for load in os.getloadavg()],
        "packages": versions,
    }


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = made.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="fewer, shorter repetitions")
    length.add_argument("--tiny", action="store_true", help="only to see that it works")
    made.add_argument("--json", metavar="FILE", help="also write figures and samples to FILE")
    return made


def effort(options: argparse.Namespace) -> Effort:
    return Effort(0 if options.tiny else 1 if options.quick else 2)


def report(tables: Iterable[Table], json_file: str | None) -> None:
    """Print each table as soon as it is measured; at the end write the JSON file, if asked for.

    SIGTERM becomes an ordinary exit, so that children, FIFOs and segments are cleaned up.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    machine = environment()
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    print(f"{machine['python']}, {machine['system']}, {machine['cores']} cores")
    print(f"load {machine['load'][0]} at the start; {packages}", flush=True)
    done = []
    start = time.monotonic()
    for table in tables:
        print(table, flush=True)
        columns = [[column.key, column.heading, column.form] for column in table.columns]
        seconds, start = time.monotonic() - start, time.monotonic()
        done.append({**vars(table), "columns": columns, "seconds": round(seconds, 1)})
    if json_file:
        os.makedirs(os.path.dirname(json_file) or ".", exist_ok=True)
        with open(json_file, "w", encoding="utf-8") as out:
            json.dump({"environment": machine, "tables": done}, out, indent=1)
