"""What the proofs did at full length, written into docs/reliability.rst by the run that did it.

A test tells what it counts by pytest's fixture `record_property`: kills, exceptions, and so on. The
table has a row for each of these tests, the sum of its cases. docs/proofs.json keeps what each case
did, so that the cases of one test may be run in parts. A run replaces the cases that it ran to a
good end, and the rows of their tests. It replaces no other row.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

Record = Callable[[str, object], None]  # of `record_property`: what is counted, and how many

Cases = dict[str, dict[str, Any]]  # by test and id: what it did

PAGE = Path(__file__).parent.parent / "docs" / "reliability.rst"
CASES = PAGE.with_name("proofs.json")
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


def cases_of(reports: Iterable[Any]) -> Cases:
    """What the cases did of each test that counted something, and of which none failed."""
    found: Cases = {}
    failed = set()
    for report in reports:
        if report.when != "call":
            continue
        test, case = names_of(report.nodeid)
        if report.failed:
            failed.add(test)
        elif report.user_properties:
            found.setdefault(test, {})[case] = {
                "counted": dict(report.user_properties),
                "minutes": round(report.duration / 60, 2),
                "date": time.strftime("%Y-%m-%d"),
                "python": f"{platform.python_implementation()} {platform.python_version()}, "
                f"{platform.machine()}",
            }
    return {test: cases for test, cases in found.items() if test not in failed}


def names_of(nodeid: str) -> tuple[str, str]:
    """The function of a test, and which of its cases it is."""
    test, _, case = nodeid.partition("[")
    return test.rpartition("::")[2], case.removesuffix("]")


def proof_of(test: str, cases: dict[str, Any]) -> Proof:
    counted: Counter[str] = Counter()
    for case in cases.values():
        counted.update(case["counted"])
    return Proof(
        f"``{test}``",
        str(len(cases)),
        ", ".join(f"{many:,} {what}" for what, many in counted.items()),
        f"{sum(case['minutes'] for case in cases.values()):.0f}",
        max(case["date"] for case in cases.values()),
        "; ".join(sorted({case["python"] for case in cases.values()})),
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
    if not (ran := cases_of(reports)):
        return
    known: Cases = json.loads(CASES.read_text(encoding="utf-8"))
    for test, cases in ran.items():
        known[test] = dict(sorted({**known.get(test, {}), **cases}.items()))
    # What was counted stays in its order, as in the row.
    text = json.dumps(dict(sorted(known.items())), indent=1)
    CASES.write_text(text + "\n", encoding="utf-8")
    proofs = [proof_of(test, known[test]) for test in ran]
    page = with_proofs(PAGE.read_text(encoding="utf-8"), proofs)
    PAGE.write_text(page, encoding="utf-8")
