"""Tables and plots from the JSON files of a run.

    python -m benchmarks.report [--into FOLDER] FILE ... [--fill PAGE ...]

Draws the plots into FOLDER (docs/benchmarks), writes all tables to results.rst there, and fills
each PAGE (README.rst, docs/performance.rst) between the lines ``.. figures: NAME`` and ``.. end of
figures``, where NAME is that of a table, ``environment``, or ``summary``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.figures import Figures
from benchmarks.measure import Column, Table
from benchmarks.processes import REPOSITORY

BLOCK = re.compile(r"(?<=^\.\. figures: )(?P<name>[^\n]*)\n.*?^\.\. end of figures\n", re.M | re.S)
RESULTS = "results.rst"
CODE = {"what", "where"}  # columns of the profile, which hold Python


def rst(table: Table) -> str:
    """A table as reStructuredText, in the form that also reads well as text."""
    heads = [column.heading for column in table.columns]
    cells = [[_cell(column, row) for column in table.columns] for row in table.rows]
    if not cells:
        return f"{table.note}\n"
    widths = [max(map(len, column)) for column in zip(heads, *cells)]
    border = "  ".join("=" * width for width in widths)
    lines = [border, _row(heads, widths, table), border]
    lines += [_row(row, widths, table) for row in cells]
    lines.append(border)
    note = f"\n{table.note}\n" if table.note else ""
    return "\n".join(line.rstrip() for line in lines) + "\n" + note


def _cell(column: Column, row: dict[str, Any]) -> str:
    text = column.text(row)
    if column.key in CODE and "ns" in row:
        return f"``{text}``"
    return text


def _row(cells: list[str], widths: list[int], table: Table) -> str:
    return "  ".join(
        cell.rjust(width) if column.form else cell.ljust(width)
        for cell, width, column in zip(cells, widths, table.columns)
    )


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


def summary(figures: Figures) -> str:
    """A row for each layer: what most people ask first."""
    trips = "two cores" if figures.rows("roundtrip", way="two cores") else "unpinned"

    def trip(layer: str) -> float | None:
        return figures.get("roundtrip", "p50", way=trips, layer=layer)

    rows = []
    for one in figures.rows("pair"):
        layer = one["layer"]
        rows.append(
            {
                "layer": layer,
                "pair": one["pair"],
                "trip": trip(layer),
                # Peers always sleep.
                "asleep": trip(f"{layer}-asleep") or trip(layer),
                "one": figures.get("throughput", "rate", receivers=1, layer=layer),
                "four": figures.get("throughput", "rate", receivers=4, layer=layer),
                "call": figures.get("broadcast", "call", layer=layer),
                "last": figures.get("broadcast", "last", layer=layer),
            }
        )
    columns = (
        Column("layer", "layer"),
        Column("pair", "pair, µs", ",.1f"),
        Column("trip", "round trip, µs", ",.0f"),
        Column("asleep", "asleep, µs", ",.0f"),
        Column("one", "1 → 1, /s", ",.0f"),
        Column("four", "1 → 4, /s", ",.0f"),
        Column("call", "group send, ms", ",.2f"),
        Column("last", "the last has it, ms", ",.0f"),
    )
    return rst(Table("summary", "summary", columns, rows))


def blocks(figures: Figures) -> dict[str, str]:
    """What can be put into a page, by name."""
    made = {name: rst(table) for name, table in figures.tables.items()}
    made["targets"] = rst(targets.table(figures))
    made["environment"] = environment(figures)
    made["summary"] = summary(figures)
    return made


def fill(page: str, made: dict[str, str]) -> str:
    """The text of a page with its blocks made anew. KeyError: a name that no block has."""

    def block(found: re.Match[str]) -> str:
        name = found["name"].strip()
        return f"{name}\n\n{made[name]}\n.. end of figures\n"

    return BLOCK.sub(block, page)


def results(figures: Figures, plots: list[str]) -> str:
    """The page with everything."""
    title = "Results of the benchmarks"
    parts = [
        ".. Written by make bench. Change the benchmarks, not this page.\n",
        f"{title}\n{'=' * len(title)}\n",
        environment(figures),
        "What each workload does stands in `benchmarks/layers <../../benchmarks/layers>`_.\n",
    ]
    parts += [f".. image:: {name}\n" for name in plots]
    for table in [targets.table(figures), *figures.tables.values()]:
        heading = table.title[0].upper() + table.title[1:]
        parts += [f"{heading}\n{'-' * len(heading)}\n", rst(table)]
    return "\n".join(parts)


def main() -> None:
    from benchmarks.plots import draw

    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("files", nargs="+", metavar="FILE")
    options.add_argument("--into", type=Path, default=Path(REPOSITORY) / "docs" / "benchmarks")
    options.add_argument("--fill", nargs="*", type=Path, default=[], metavar="PAGE")
    chosen = options.parse_args()
    figures = Figures.read(chosen.files)
    chosen.into.mkdir(parents=True, exist_ok=True)
    plots = draw(figures, chosen.into)
    (chosen.into / RESULTS).write_text(results(figures, plots), encoding="utf-8")
    made = blocks(figures)
    for page in chosen.fill:
        page.write_text(fill(page.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
