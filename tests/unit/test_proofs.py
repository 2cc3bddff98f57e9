"""The table of the proofs at full length in docs/reliability.rst."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import proofs
from tests.proofs import CASES, PAGE, TABLE, cases_of, names_of

THERE = {"test_a": {"1", "2", "3"}, "test_b": {""}}


def report(case: str, passed: bool = True, when: str = "call", **counts: int) -> Any:
    return SimpleNamespace(
        nodeid=case if "/" in case else f"tests/reliability/test_x.py::{case}",
        when=when,
        passed=passed,
        failed=not passed,
        duration=90.0,
        user_properties=[*counts.items()],
    )


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page, no case yet, and two tests."""
    copy = tmp_path / PAGE.name
    copy.write_bytes(PAGE.read_bytes())
    cases = tmp_path / CASES.name
    cases.write_text("{}")
    monkeypatch.setattr(proofs, "PAGE", copy)
    monkeypatch.setattr(proofs, "CASES", cases)
    monkeypatch.setattr(proofs, "all_cases", lambda: defaultdict(set, THERE))
    return copy


def row_of(page: Path, test: str) -> str:
    lines = page.read_text(encoding="utf-8").splitlines()
    (row,) = (line.strip() for line in lines if f"   ``{test}``" in line)
    return row


def test_the_cases_of_a_test_are_added_up(page: Path) -> None:
    proofs.write([report("test_a[1]", kills=1000), report("test_a[2]", kills=234)])
    assert row_of(page, "test_a").startswith('``test_a``,2 of 3,"1,234 kills",3,')


def test_the_cases_of_a_test_may_be_run_in_parts(page: Path) -> None:
    proofs.write([report("test_a[1]", kills=1), report("test_a[2]", kills=20)])
    proofs.write([report("test_a[2]", kills=30), report("test_a[3]", kills=400)])
    assert row_of(page, "test_a").startswith("``test_a``,3,431 kills,4,")


def test_a_case_is_written_when_it_has_ended(page: Path) -> None:
    writer = proofs.Writer()
    writer.pytest_runtest_logreport(report("test_a[1]", kills=1))
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,1 kills,")
    writer.pytest_runtest_logreport(report("test_a[2]", kills=20))
    assert row_of(page, "test_a").startswith("``test_a``,2 of 3,21 kills,")


def test_what_was_counted_stays_in_its_order(page: Path) -> None:
    proofs.write([report("test_a[2]", kills=1, deaths=2)])
    proofs.write([report("test_a[1]", kills=3, deaths=4)])
    known = json.loads(proofs.CASES.read_text(encoding="utf-8"))
    assert [*known["test_a"]["1"]["counted"]] == ["kills", "deaths"]
    assert row_of(page, "test_a").startswith('``test_a``,2 of 3,"4 kills, 6 deaths",')


@pytest.mark.parametrize("when", ["setup", "call", "teardown", "???"])
def test_a_case_that_failed_counts_no_longer(page: Path, when: str) -> None:
    """As xdist has it, a worker that crashed did so at no stage that is known."""
    proofs.write([report("test_a[1]", kills=1), report("test_a[2]", kills=20)])
    passed = [report("test_a[1]", kills=5), report("test_a[2]", kills=300)]
    proofs.write([*passed, report("test_a[2]", passed=False, when=when)])
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,5 kills,")
    proofs.write([report("test_a[1]", passed=False, when=when)])
    assert "``test_a``" not in page.read_text(encoding="utf-8")


def test_what_counted_nothing_has_no_row() -> None:
    assert cases_of([report("test_a"), report("test_c", when="teardown", kills=2)]) == {}


def test_a_case_that_is_no_longer_there_counts_no_longer(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs.write([report("test_a[1]", kills=1), report("test_a[2]", kills=20)])
    proofs.write([report("test_b", kills=1)])
    monkeypatch.setattr(proofs, "all_cases", lambda: defaultdict(set, {"test_a": {"2"}}))
    proofs.write([report("test_c", passed=False)])
    assert row_of(page, "test_a").startswith("``test_a``,1,20 kills,")
    assert "``test_b``" not in page.read_text(encoding="utf-8")


def test_the_row_of_a_test_that_ran_on_several_days_says_so(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case, day in (("1", "2030-01-31"), ("2", "2030-02-01")):
        monkeypatch.setattr(proofs.time, "strftime", lambda _, day=day: day)
        proofs.write([report(f"test_a[{case}]", kills=1)])
    assert ",2030-01-31 to 2030-02-01," in row_of(page, "test_a")


def test_a_run_replaces_the_rows_of_its_own_tests(page: Path) -> None:
    before = page.read_text(encoding="utf-8")
    proofs.write([report("test_a[3]", kills=1), report("test_b", kills=2)])
    proofs.write([report("test_b", kills=1003)])
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,1 kills,")
    assert row_of(page, "test_b").startswith('``test_b``,1,"1,003 kills",')
    assert TABLE.sub("", page.read_text(encoding="utf-8")) == TABLE.sub("", before)


def test_the_rows_are_the_sums_of_the_cases_that_are_kept() -> None:
    """The number of cases that there are is that of the last run: one may be new."""
    for test, cases in json.loads(CASES.read_text(encoding="utf-8")).items():
        wanted = ",".join(proofs.proof_of(test, cases, {*cases}))
        assert re.sub(" of [0-9]+,", ",", row_of(PAGE, test), count=1).replace('"', "") == wanted


def test_a_row_of_which_no_case_is_known_stays_where_one_fails(page: Path) -> None:
    proofs.write([report("test_a[1]", kills=1)])
    proofs.CASES.write_text("{}")
    proofs.write([report("test_a[1]", passed=False), report("tests/test_y.py", passed=False)])
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,1 kills,")


def test_what_is_named_is_the_function() -> None:
    assert names_of("tests/test_x.py::test_a[send::twice]") == ("test_a", "send::twice")
    assert names_of("tests/test_x.py::TestX::test_a") == ("test_a", "")
