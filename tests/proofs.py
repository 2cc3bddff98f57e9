"""What the proofs did at full length, written into docs/reliability.rst by the run that did it.

A test tells what it counts by pytest's fixture `record_property`: kills, exceptions, and so on. The
table has a row for each of these tests, the sum of its cases. docs/proofs.json keeps what each case
did, so that the cases of one test may be run in parts, one part after the other. Each case is
written when it has ended: it replaces what was known of it if it passed, and is removed if it
failed. Those that are no longer there are removed too. If no case of a row is known, because it is
older than that file, the first case that passes replaces the row.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Record = Callable[[str, object], None]  # of `record_property`: what is counted, and how many

Cases = dict[str, dict[str, Any]]  # by test and id: what it did
There = dict[str, set[str]]  # by test: its cases at full length

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "reliability.rst"
CASES = PAGE.with_name("proofs.json")
TABLE = re.compile(r"(?<=\.\. proofs at full length\n\n).*?(?=\n\.\. end of proofs\n)", re.DOTALL)
OPTIONS = """\
.. csv-table::
   :header: Test, Cases, What was counted, Minutes, Finished, Python
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


def names_of(nodeid: str) -> tuple[str, str]:
    """The function of a test, and which of its cases it is."""
    test, _, case = nodeid.partition("[")
    return test.rpartition("::")[2], case.removesuffix("]")


def all_cases(where: str = "tests/reliability") -> There:
    """Every test of a file or a folder. It takes seconds."""
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "--noconftest", "--no-summary"]
        + ["-p", "no:cacheprovider", where],
        cwd=REPOSITORY,
        env={**os.environ, "ASGI_IPC_TEST_LENGTH": "full", "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if listed.returncode:
        raise RuntimeError(listed.stdout)
    found: There = defaultdict(set)
    for line in listed.stdout.splitlines():
        if "::" in line:
            test, case = names_of(line)
            found[test].add(case)
    return found


def proof_of(test: str, cases: dict[str, Any], there: set[str]) -> Proof:
    """The row of a test: what `cases` did, of those that are `there`."""
    counted: Counter[str] = Counter()
    for case in cases.values():
        counted.update(case["counted"])
    dates = sorted({case["date"] for case in cases.values()})
    return Proof(
        f"``{test}``",
        f"{len(cases)}" if len(cases) == len(there) else f"{len(cases)} of {len(there)}",
        ", ".join(f"{many:,} {what}" for what, many in counted.items()),
        f"{sum(case['minutes'] for case in cases.values()):.0f}",
        dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        "; ".join(sorted({case["python"] for case in cases.values()})),
    )


def with_proofs(page: str, proofs: dict[str, Proof | None]) -> str:
    """The text of the page with the rows of these tests replaced, added, or removed for None."""
    table = TABLE.search(page)
    assert table is not None, f"{PAGE} has no place for the table"
    lines = [line.strip() for line in table[0].splitlines() if line.startswith("   ``")]
    rows = {row.test: row for row in map(Proof._make, csv.reader(lines, skipinitialspace=True))}
    for test, proof in proofs.items():
        rows.pop(f"``{test}``", None)
        if proof is not None:
            rows[proof.test] = proof
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerows(rows[test] for test in sorted(rows))
    text = OPTIONS + "".join(f"\n   {line}" for line in made.getvalue().splitlines()) + "\n"
    return page[: table.start()] + (text if rows else table[0]) + page[table.end() :]


def write(report: Any, there: There) -> None:
    """Put into the table what a case counted, or take out a case that failed, at whatever stage."""
    if not (report.failed or (report.passed and report.when == "call" and report.user_properties)):
        return
    test, case = names_of(report.nodeid)
    known: Cases = json.loads(CASES.read_text(encoding="utf-8"))
    proofs: dict[str, Proof | None] = dict.fromkeys(known)
    known.setdefault(test, {}).pop(case, None)
    if report.passed:
        known[test][case] = {
            "counted": dict(report.user_properties),
            "minutes": round(report.duration / 60, 2),
            "date": time.strftime("%Y-%m-%d"),
            "python": f"{platform.python_implementation()} {platform.python_version()}, "
            f"{platform.machine()}",
        }
    kept: Cases = {}
    for test, cases in sorted(known.items()):
        if did := {case: cases[case] for case in sorted(cases) if case in there.get(test, ())}:
            kept[test] = did
            proofs[test] = proof_of(test, did, there[test])
    # What was counted stays in its order, as in the row.
    replace(CASES, json.dumps(kept, indent=1) + "\n")
    replace(PAGE, with_proofs(PAGE.read_text(encoding="utf-8"), proofs))


def replace(path: Path, text: str) -> None:
    """Write the whole file or nothing: the run may be killed, and tests of it read the file."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


class Writer:
    """A plugin of pytest that writes what a case did when it has ended: the run may be killed."""

    def __init__(self) -> None:
        # Once, and before anything is run: an error in a test file shows here, not after hours.
        self.there = all_cases()

    def pytest_runtest_logreport(self, report: Any) -> None:
        write(report, self.there)
