"""The table of the proofs at full length in docs/reliability.rst."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.proofs import PAGE, TABLE, name_of, proofs_of, with_proofs


def report(case: str, passed: bool = True, when: str = "call", **counts: int) -> Any:
    return SimpleNamespace(
        nodeid=f"tests/reliability/test_x.py::{case}",
        when=when,
        passed=passed,
        failed=not passed,
        duration=90.0,
        user_properties=[*counts.items()],
    )


def test_the_cases_of_a_test_are_added_up() -> None:
    (proof,) = proofs_of([report("test_a[1]", kills=1000), report("test_a[2]", kills=234)])
    assert proof[:4] == ("``test_a``", "2", "1,234 kills", "3")


def test_a_test_that_failed_or_counted_nothing_has_no_row() -> None:
    failed = report("test_b[2]", passed=False)
    torn_down = report("test_c", when="teardown", kills=2)
    assert proofs_of([report("test_a"), report("test_b[1]", kills=1), failed, torn_down]) == []


def test_a_run_replaces_the_rows_of_its_own_tests() -> None:
    page = PAGE.read_text(encoding="utf-8")
    both = with_proofs(page, proofs_of([report("test_a", kills=1), report("test_b", kills=2)]))
    again = with_proofs(both, proofs_of([report("test_b", kills=1003)]))
    table = TABLE.search(again)
    assert table is not None
    assert "``test_a``,1,1 kills," in table[0]
    assert '``test_b``,1,"1,003 kills",' in table[0]
    assert "``test_b``,1,2 kills" not in table[0]
    assert TABLE.sub("", again) == TABLE.sub("", page)


def test_what_is_named_is_the_function() -> None:
    assert name_of("tests/test_x.py::test_a[send::twice]") == "test_a"
