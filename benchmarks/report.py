"""Tables and a plot from the JSON file of a run.

    python -m benchmarks.report FILE ... [--into FOLDER] [--fill PAGE ...]

Draws the plot into FOLDER (docs/benchmarks), writes all tables to results.rst there, and fills each
PAGE (README.rst, docs/performance.rst) between the lines ``.. figures: NAME`` and ``.. end of
figures``, where NAME is that of a table, ``environment``, ``summary`` or ``beside-redis``. Tables
of a later FILE replace those of an earlier one, so that one workload can be measured again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.measure import Column, Figures, Row, Table
from benchmarks.plot import draw
from benchmarks.processes import REPOSITORY

BLOCK = re.compile(r"(?<=^\.\. figures: )(?P<name>[^\n]*)\n.*?^\.\. end of figures\n", re.M | re.S)
RESULTS, PLOT = "results.rst", "overview.svg"


def rst(table: Table) -> str:
    """A table as reStructuredText, in the form that also reads well as text."""
    if not table.rows:
        return f"{table.note}\n"
    heading, border, *rows = table.lines("=")
    note = f"\n{table.note}\n" if table.note else ""
    return "\n".join([border, heading, border, *rows, border]) + "\n" + note


def environment(figures: Figures) -> str:
    """Where and on what it was measured."""
    known = figures.environment
    packages = ", ".join(
        f"{name} {version}"
        for name, version in known["packages"].items()
        if version != "not installed"
    )
    return (
        f"Measured on {known['date']} with {known['python']} on {known['system']},\n"
        f"{known['cores']} cores; {packages}.\nasgi_ipc 1.4.2 and asgi_redis 1.4.3 ran on"
        " Python 3.9.\n"
    )


def summary(figures: Figures) -> Table:
    """A row for each layer: what most people ask first."""
    trips = "two cores" if figures.rows("roundtrip", way="two cores") else "unpinned"

    def trip(layer: str) -> float | None:
        return figures.get("roundtrip", "p50", way=trips, layer=layer)

    def row(layer: str, pair: float) -> Row:
        return {
            "layer": layer,
            "pair": pair,
            "trip": trip(layer),
            "asleep": trip(f"{layer}-asleep") or trip(layer),  # peers always sleep
            "one": figures.get("throughput", "rate", receivers=1, layer=layer),
            "four": figures.get("throughput", "rate", receivers=4, layer=layer),
            "call": figures.get("broadcast", "call", layer=layer),
            "last": figures.get("broadcast", "last", layer=layer),
        }

    columns = (
        Column("layer", "layer"),
        Column("pair", "pair, µs", ",.1f"),
        Column("trip", "round trip, µs", ",.0f"),
        Column("asleep", "asleep, µs", ",.0f"),
        Column("one", "1 → 1, /s", ",.0f"),
        Column("four", "1 → 4, /s", ",.0f"),
        Column("call", "group send, ms", ",.2f"),
        Column("last", "last delivery, ms", ",.0f"),
    )
    rows = [row(one["layer"], one["pair"]) for one in figures.rows("pair")]
    return Table("summary", "summary", columns, rows)


def beside_redis(figures: Figures) -> str:
    """What a round trip takes, in a sentence. Empty if it was not measured with both layers."""
    trips = {row["layer"]: row["trip"] for row in summary(figures).rows}
    ours, theirs = trips.get("asgi_ipc-asyncio"), trips.get("channels_redis-pubsub")
    if ours is None or theirs is None:
        return ""
    asleep = figures.get("roundtrip", "p50", way="two cores", layer="asgi_ipc-asyncio-asleep")
    pause = "" if asleep is None else f" ({asleep:,.0f} µs after a pause)"
    return (
        f"**A round trip** between two processes takes {ours:,.0f} µs{pause}.\n"
        f"With channels_redis, pub/sub, it takes {theirs:,.0f} µs.\n"
    )


def blocks(figures: Figures) -> dict[str, str]:
    """What can be put into a page, by name."""
    tables = [*figures.tables.values(), summary(figures)]
    return {
        "environment": environment(figures),
        "beside-redis": beside_redis(figures),
        **{table.name: rst(table) for table in tables},
    }


def fill(page: str, made: dict[str, str]) -> str:
    """The text of a page with its blocks made again. KeyError: a name that no block has."""

    def block(found: re.Match[str]) -> str:
        name = found["name"].strip()
        return f"{name}\n\n{made[name]}\n.. end of figures\n"

    return BLOCK.sub(block, page)


def results(figures: Figures) -> str:
    """The page with everything."""
    title = "Results of the benchmarks"
    parts = [
        ".. Written by make bench. Change the benchmarks, not this page.\n",
        f"{title}\n{'=' * len(title)}\n",
        environment(figures),
        "`benchmarks/workloads <../../benchmarks/workloads>`_ says what each workload does.\n",
        f".. image:: {PLOT}\n",
    ]
    for table in figures.tables.values():
        heading = table.title[0].upper() + table.title[1:]
        parts += [f"{heading}\n{'-' * len(heading)}\n", rst(table)]
    return "\n".join(parts)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("files", nargs="+", metavar="FILE")
    options.add_argument("--into", type=Path, default=Path(REPOSITORY) / "docs" / "benchmarks")
    options.add_argument("--fill", nargs="*", type=Path, default=[], metavar="PAGE")
    chosen = options.parse_args()
    figures = Figures.read(chosen.files)
    chosen.into.mkdir(parents=True, exist_ok=True)
    draw(figures, chosen.into / PLOT)
    (chosen.into / RESULTS).write_text(results(figures), encoding="utf-8")
    made = blocks(figures)
    for page in chosen.fill:
        page.write_text(fill(page.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
