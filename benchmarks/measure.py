"""From samples to tables and JSON, and back: interleaving, medians, paired ratios, printing.

All benchmarks average and print with these functions. Nothing here measures anything.
"""

from __future__ import annotations

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
Row = dict[str, Any]  # of a table: texts, figures, and lists of samples

PACKAGES = ("posix_ipc", "msgpack", "channels", "channels_redis", "redis", "pyzmq")


@dataclass(frozen=True)
class Column:
    """One printed column: the key in the row, the heading, and the format of a figure."""

    key: str
    heading: str
    form: str = ""

    def text(self, row: Row) -> str:
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
    rows: list[Row] = field(default_factory=list)
    note: str = ""

    def lines(self, rule: str) -> list[str]:
        """The table as text: a heading, a line of `rule`, and the rows, each column aligned."""
        cells = [[column.heading for column in self.columns]]
        cells += [[column.text(row) for column in self.columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = []
        for line in cells:
            padded = [
                cell.rjust(width) if column.form else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns)
            ]
            lines.append("  ".join(padded).rstrip())
        lines.insert(1, "  ".join(rule * width for width in widths))
        return lines

    def __str__(self) -> str:
        if not self.rows:
            return f"\n{self.title}\n{self.note or 'no layer here takes part'}"
        lines = ["", self.title, "=" * len(self.title), *self.lines("-")]
        return "\n".join([*lines, self.note] if self.note else lines)


class Figures:
    """The tables of one or more JSON files by name. A later file replaces tables of an earlier."""

    def __init__(self, environment: dict[str, Any], tables: dict[str, Table]) -> None:
        self.environment = environment
        self.tables = tables

    @classmethod
    def read(cls, paths: Iterable[str]) -> Figures:
        """Read what `report` wrote. The environment is that of the first file."""
        environment: dict[str, Any] = {}
        tables: dict[str, Table] = {}
        for path in paths:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            environment = environment or content["environment"]
            for one in content["tables"]:
                columns = [Column(*column) for column in one["columns"]]
                tables[one["name"]] = Table(
                    one["name"], one["title"], columns, one["rows"], one["note"]
                )
        return cls(environment, tables)

    def rows(self, table: str, **where: object) -> list[Row]:
        """The rows whose columns have these values; none if there is no such table."""
        found = self.tables.get(table)
        return [
            row
            for row in (found.rows if found else [])
            if all(row.get(key) == value for key, value in where.items())
        ]

    def get(self, table: str, key: str, **where: object) -> float | None:
        """One figure of the first of these rows; None if it was not measured."""
        rows = self.rows(table, **where)
        return rows[0].get(key) if rows else None


@dataclass(frozen=True)
class Effort:
    """How long to measure: 0 only to see that it works, 1 quick, 2 in full."""

    level: int

    def __call__(self, tiny: T, quick: T, full: T) -> T:
        return (tiny, quick, full)[self.level]


def interleaved(repetitions: int, contenders: Sequence[T]) -> Iterator[T]:
    """Every contender once in each repetition. Each repetition starts with the next contender."""
    for repetition in range(repetitions):
        first = repetition % len(contenders) if contenders else 0
        yield from contenders[first:]
        yield from contenders[:first]


def paired_ratio(samples: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios within each repetition: load that hits both cancels out."""
    return statistics.median(one / other for one, other in zip(samples, base))


def against(rows: Sequence[Row], key: str, *bases: str) -> Iterator[Column]:
    """Add to each row how many times the figure of each base it has, `key`, and yield the columns.
    A base is a layer of the same run, whose rows are among these."""
    for base in bases:
        known = {tuple(_alike(row)): row.get(key) for row in rows if row.get("layer") == base}
        if not known:
            continue
        for row in rows:
            other = known.get(tuple(_alike(row)))
            if other and row.get(key) and row["layer"] != base:
                row[f"{key} / {base}"] = row[key] / other
        yield Column(f"{key} / {base}", f"× {base}", ",.2f")


def _alike(row: Row) -> Iterator[object]:
    """What a row must have in common with that of a base."""
    return (row.get(key) for key in ("receivers", "way", "n", "on"))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered samples lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def medians(keys: Sequence[str], samples: Sequence[Sequence[float | None]]) -> Row:
    """The median of each position of the samples, under its key; None is not counted."""
    known = [[one for one in column if one is not None] for column in zip(*samples)]
    return {key: statistics.median(column) for key, column in zip(keys, known) if column}


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


def report(tables: Iterable[Table], json_file: str | None) -> None:
    """Print each table as soon as it is measured. At the end write the JSON file, if asked for.

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
