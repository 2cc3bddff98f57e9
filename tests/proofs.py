"""What the proofs did at full length, written into docs/reliability.rst by the run that did it.

A test tells what it counts by pytest's fixture `record_property`: kills, exceptions, and so on. The
table has a row for each of these tests. A run replaces the rows of the tests that it ran to a good
end, so that the whole may be run in parts. It replaces no other row.
"""

from __future__ import annotations

import csv
import io
import platform
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

Record = Callable[[str, object], None]  # of `record_property`: what is counted, and how many

PAGE = Path(__file__).parent.parent / "docs" / "reliability.rst"
TABLE = re.compile(r"(?<=\.\. proofs at full length\n\n).*?(?=\n\.\. end of proofs\n)", re.DOTALL)
OPTIONS = """\
.. csv-table::
   :header: Test, Cases, What was counted, Minutes, Finished on, Python
   :widths: auto
"""


class Proof(NamedTuple):
    """A row of the table. The minutes of all cases are added up, also of those at the same time."""

    test: str
    cases: str
    counted: str
    minutes: str
    date: str
    python: str


def proofs_of(reports: Iterable[Any]) -> list[Proof]:
    """One for each test that counted something, and of which no case failed."""
    found: dict[str, list[Any]] = {}
    for report in reports:
        if report.when == "call" and (report.user_properties or report.failed):
            found.setdefault(name_of(report.nodeid), []).append(report)
    return [
        proof_of(test, cases)
        for test, cases in sorted(found.items())
        if all(report.passed for report in cases)
    ]


def name_of(nodeid: str) -> str:
    return nodeid.partition("[")[0].rpartition("::")[2]


def proof_of(test: str, reports: list[Any]) -> Proof:
    counts: dict[str, int] = {}
    for report in reports:
        for what, many in report.user_properties:
            counts[what] = counts.get(what, 0) + many
    return Proof(
        f"``{test}``",
        str(len(reports)),
        ", ".join(f"{many:,} {what}" for what, many in counts.items()),
        f"{sum(report.duration for report in reports) / 60:.0f}",
        time.strftime("%Y-%m-%d"),
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}",
    )


def with_proofs(page: str, proofs: Iterable[Proof]) -> str:
    """The text of the page with the rows of these tests replaced or added."""
    table = TABLE.search(page)
    assert table is not None, f"{PAGE} has no place for the table"
    lines = [line.strip() for line in table[0].splitlines() if line.startswith("   ``")]
    rows = {row.test: row for row in map(Proof._make, csv.reader(lines, skipinitialspace=True))}
    rows.update((proof.test, proof) for proof in proofs)
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerows(rows[test] for test in sorted(rows))
    text = OPTIONS + "".join(f"\n   {line}" for line in made.getvalue().splitlines()) + "\n"
    return page[: table.start()] + (text if rows else table[0]) + page[table.end() :]


def write(reports: Iterable[Any]) -> None:
    if proofs := proofs_of(reports):
        page = with_proofs(PAGE.read_text(encoding="utf-8"), proofs)
        PAGE.write_text(page, encoding="utf-8")
