"""The table of the proofs at full length in docs/reliability.rst."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest, leftovers, proofs
from tests.proofs import CASES, PAGE, TABLE, names_of


def report(case: str, outcome: str = "passed", when: str = "call", **counts: int) -> Any:
    return SimpleNamespace(
        nodeid=f"tests/reliability/test_x.py::{case}",
        when=when,
        passed=outcome == "passed",
        failed=outcome == "failed",
        duration=90.0,
        user_properties=[*counts.items()],
    )


def write(*reports: Any) -> None:
    """What a run writes that has these reports."""
    writer = proofs.Writer()
    for one in reports:
        writer.pytest_runtest_logreport(one)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page, no case yet, and two tests."""
    copy = tmp_path / PAGE.name
    copy.write_bytes(PAGE.read_bytes())
    cases = tmp_path / CASES.name
    cases.write_text("{}")
    monkeypatch.setattr(proofs, "PAGE", copy)
    monkeypatch.setattr(proofs, "CASES", cases)
    there = {"test_a": {"1", "2", "3"}, "test_b": {""}}
    monkeypatch.setattr(proofs, "all_cases", lambda: there)
    return copy


def row_of(page: Path, test: str) -> str:
    lines = page.read_text(encoding="utf-8").splitlines()
    (row,) = (line.strip() for line in lines if f"   ``{test}``" in line)
    return row


def test_the_cases_of_a_test_are_added_up(page: Path) -> None:
    write(report("test_a[1]", kills=1000), report("test_a[2]", kills=234))
    assert row_of(page, "test_a").startswith('``test_a``,2 of 3,"1,234 kills",3,')


def test_the_cases_of_a_test_may_be_run_in_parts(page: Path) -> None:
    write(report("test_a[1]", kills=1), report("test_a[2]", kills=20))
    write(report("test_a[2]", kills=30), report("test_a[3]", kills=400))
    assert row_of(page, "test_a").startswith("``test_a``,3,431 kills,4,")


def test_a_case_is_written_when_it_has_ended(page: Path) -> None:
    writer = proofs.Writer()
    writer.pytest_runtest_logreport(report("test_a[1]", kills=1))
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,1 kills,")
    writer.pytest_runtest_logreport(report("test_a[2]", kills=20))
    assert row_of(page, "test_a").startswith("``test_a``,2 of 3,21 kills,")


def test_what_was_counted_stays_in_its_order(page: Path) -> None:
    write(report("test_a[2]", kills=1, deaths=2))
    write(report("test_a[1]", kills=3, deaths=4))
    known = json.loads(proofs.CASES.read_text(encoding="utf-8"))
    assert [*known["test_a"]["1"]["counted"]] == ["kills", "deaths"]
    assert row_of(page, "test_a").startswith('``test_a``,2 of 3,"4 kills, 6 deaths",')


@pytest.mark.parametrize("when", ["setup", "call", "teardown", "???"])
def test_a_case_that_failed_counts_no_longer(page: Path, when: str) -> None:
    """As xdist has it, a worker that crashed did so at no stage that is known."""
    write(report("test_a[1]", kills=1), report("test_a[2]", kills=20))
    write(report("test_a[1]", kills=5), report("test_a[2]", kills=300))
    write(report("test_a[2]", "failed", when))
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,5 kills,")
    write(report("test_a[1]", "failed", when))
    assert "``test_a``" not in page.read_text(encoding="utf-8")


def test_what_counted_nothing_has_no_row(page: Path) -> None:
    before = page.read_bytes()
    write(report("test_a[1]"), report("test_a[1]", when="teardown", kills=2))
    write(report("test_a[1]", "skipped", kills=2))
    assert page.read_bytes() == before


def test_a_case_that_is_no_longer_there_counts_no_longer(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(report("test_a[1]", kills=1), report("test_a[2]", kills=20))
    write(report("test_b", kills=1))
    monkeypatch.setattr(proofs, "all_cases", lambda: {"test_a": {"2"}})
    write(report("test_c", "failed"))
    assert row_of(page, "test_a").startswith("``test_a``,1,20 kills,")
    assert "``test_b``" not in page.read_text(encoding="utf-8")


def test_the_row_of_a_test_that_ran_on_several_days_says_so(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case, day in (("1", "2030-01-31"), ("2", "2030-02-01")):
        monkeypatch.setattr(proofs.time, "strftime", lambda _, day=day: day)
        write(report(f"test_a[{case}]", kills=1))
    assert ",2030-01-31 to 2030-02-01," in row_of(page, "test_a")


def test_a_run_replaces_the_rows_of_its_own_tests(page: Path) -> None:
    before = page.read_text(encoding="utf-8")
    write(report("test_a[3]", kills=1), report("test_b", kills=2))
    write(report("test_b", kills=1003))
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,1 kills,")
    assert row_of(page, "test_b").startswith('``test_b``,1,"1,003 kills",')
    assert TABLE.sub("", page.read_text(encoding="utf-8")) == TABLE.sub("", before)


def test_the_rows_are_the_sums_of_the_cases_that_are_kept() -> None:
    """The number of cases that there are is that of the last run: one may be new."""
    for test, cases in json.loads(CASES.read_text(encoding="utf-8")).items():
        wanted = ",".join(proofs.proof_of(test, cases, {*cases}))
        assert re.sub(" of [0-9]+,", ",", row_of(PAGE, test), count=1).replace('"', "") == wanted


def test_each_row_is_that_of_a_test() -> None:
    folder = proofs.REPOSITORY / "tests" / "reliability"
    code = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    table = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert table and (tests := re.findall("^   ``(test_.*?)``", table[0], re.MULTILINE))
    assert [test for test in tests if f"def {test}(" not in code] == []


def test_a_row_of_which_no_case_is_known_stays_where_one_fails(page: Path) -> None:
    write(report("test_a[1]", kills=1))
    proofs.CASES.write_text("{}")
    write(report("test_a[1]", "failed"))
    assert row_of(page, "test_a").startswith("``test_a``,1 of 3,1 kills,")


@pytest.mark.parametrize(
    ("length", "inside", "writers"), [("full", False, 1), ("full", True, 0), ("", False, 0)]
)
def test_only_a_run_at_full_length_writes_that_is_not_inside_another(
    page: Path, monkeypatch: pytest.MonkeyPatch, length: str, inside: bool, writers: int
) -> None:
    registered: list[Any] = []
    config: Any = SimpleNamespace(
        stash={},
        pluginmanager=SimpleNamespace(register=registered.append),
        getoption=lambda *_: None,
    )
    monkeypatch.setenv("ASGI_IPC_TEST_LENGTH", length)
    monkeypatch.setenv(leftovers.VARIABLE, "1")
    if not inside:
        monkeypatch.delenv(leftovers.VARIABLE)
    monkeypatch.setattr(conftest, "Leftovers", object)
    conftest.pytest_configure(config)
    assert [type(one) for one in registered] == [proofs.Writer] * writers
    config.workerinput = {}  # where xdist has it in the processes that do the tests
    conftest.pytest_configure(config)
    assert len(registered) == writers


def test_what_is_named_is_the_function() -> None:
    assert names_of("tests/test_x.py::test_a[send::twice]") == ("test_a", "send::twice")
    assert names_of("tests/test_x.py::TestX::test_a") == ("test_a", "")
