"""docs/reliability.rst promises only what is tested: each promise names tests, and they exist."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests import proofs
from tests.environments import REPOSITORY
from tests.reliability.scenarios import SCENARIOS

PAGE = (REPOSITORY / "docs" / "reliability.rst").read_text(encoding="utf-8")
NAMED = re.findall(r"^- ``(tests/[\w/]+\.py)::(test_\w+)``$", PAGE, re.MULTILINE)


@cache
def functions_of(path: str) -> set[str]:
    """The names of its test functions; nothing is imported."""
    module = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in module.body if isinstance(node, functions)}


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED) > 100
    missing = []
    for path, name in NAMED:
        if not (REPOSITORY / path).is_file() or name not in functions_of(path):
            missing.append(f"{path}::{name}")
    assert missing == []


def test_nothing_else_looks_like_a_test() -> None:
    """So that no name escapes the check by the way in which it is written."""
    assert PAGE.count("::test_") == len(NAMED)


def test_every_promise_names_a_test() -> None:
    """A promise is a paragraph that begins in bold; what follows it are its tests."""
    paragraphs = re.split(r"\n\n+", PAGE)
    promises = [at for at, text in enumerate(paragraphs) if text.startswith("**")]
    assert len(promises) > 30
    without = [paragraphs[at] for at in promises if not paragraphs[at + 1].startswith("- ``tests/")]
    assert without == []


def test_the_table_counts_the_cases_at_full_length() -> None:
    there = proofs.all_cases("tests/reliability/test_exceptions.py")
    assert there["test_exception_in_an_event_loop"] == {*SCENARIOS}
