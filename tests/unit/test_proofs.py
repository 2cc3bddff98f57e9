"""The table of the proofs at full length in docs/reliability.rst."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import proofs
from tests.proofs import CASES, PAGE, TABLE, cases_of, names_of


def report(case: str, passed: bool = True, when: str = "call", **counts: int) -> Any:
    return SimpleNamespace(
        nodeid=f"tests/reliability/test_x.py::{case}",
        when=when,
        passed=passed,
        failed=not passed,
        duration=90.0,
        user_properties=[*counts.items()],
    )


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page, and no case yet."""
    copy = tmp_path / PAGE.name
    copy.write_bytes(PAGE.read_bytes())
    cases = tmp_path / CASES.name
    cases.write_text("{}")
    monkeypatch.setattr(proofs, "PAGE", copy)
    monkeypatch.setattr(proofs, "CASES", cases)
    return copy


def row_of(page: Path, test: str) -> str:
    lines = page.read_text(encoding="utf-8").splitlines()
    (row,) = (line.strip() for line in lines if f"   ``{test}``" in line)
    return row


def test_the_cases_of_a_test_are_added_up(page: Path) -> None:
    proofs.write([report("test_a[1]", kills=1000), report("test_a[2]", kills=234)])
    assert row_of(page, "test_a").startswith('``test_a``,2,"1,234 kills",3,')


def test_the_cases_of_a_test_may_be_run_in_parts(page: Path) -> None:
    proofs.write([report("test_a[1]", kills=1), report("test_a[2]", kills=20)])
    proofs.write([report("test_a[2]", kills=30), report("test_a[3]", kills=400)])
    assert row_of(page, "test_a").startswith("``test_a``,3,431 kills,4,")


def test_what_was_counted_stays_in_its_order(page: Path) -> None:
    proofs.write([report("test_a[2]", kills=1, deaths=2)])
    proofs.write([report("test_a[1]", kills=3, deaths=4)])
    known = json.loads(proofs.CASES.read_text(encoding="utf-8"))
    assert proofs.proof_of("test_a", known["test_a"]).counted == "4 kills, 6 deaths"
    assert row_of(page, "test_a").startswith('``test_a``,2,"4 kills, 6 deaths",')


def test_a_test_that_failed_or_counted_nothing_has_no_row() -> None:
    failed = report("test_b[2]", passed=False)
    torn_down = report("test_c", when="teardown", kills=2)
    assert cases_of([report("test_a"), report("test_b[1]", kills=1), failed, torn_down]) == {}


def test_a_run_replaces_the_rows_of_its_own_tests(page: Path) -> None:
    before = page.read_text(encoding="utf-8")
    proofs.write([report("test_a", kills=1), report("test_b", kills=2)])
    proofs.write([report("test_b", kills=1003)])
    assert row_of(page, "test_a").startswith("``test_a``,1,1 kills,")
    assert row_of(page, "test_b").startswith('``test_b``,1,"1,003 kills",')
    assert TABLE.sub("", page.read_text(encoding="utf-8")) == TABLE.sub("", before)


def test_the_rows_are_the_sums_of_the_cases_that_are_kept() -> None:
    for test, cases in json.loads(CASES.read_text(encoding="utf-8")).items():
        assert ",".join(proofs.proof_of(test, cases)) == row_of(PAGE, test).replace('"', "")


def test_what_is_named_is_the_function() -> None:
    assert names_of("tests/test_x.py::test_a[send::twice]") == ("test_a", "send::twice")
    assert names_of("tests/test_x.py::TestX::test_a") == ("test_a", "")
