"""How the tests are shared out, and what is kept of one that has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest

TOGETHER = conftest.TESTS / "wsgi" / "test_servers.py"
APART = conftest.TESTS / "layers" / "test_aio.py"


def test_only_tests_that_stay_together_keep_their_order() -> None:
    items: list[Any] = [
        SimpleNamespace(path=path, nodeid=f"{path}::test[{number}]")
        for path in (APART, TOGETHER)
        for number in range(50)
    ]
    before = items[:]
    conftest.pytest_collection_modifyitems(SimpleNamespace(workerinput={}), items)  # type: ignore[arg-type]
    assert items[:50] == before[50:]
    assert items[50:] != before[:50] and {item.path for item in items[50:]} == {APART}


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_test_of_a_class_has_kept_is_let_go(fails: bool) -> None:
    instance = SimpleNamespace(made=["layer"])
    hook = conftest.pytest_runtest_teardown(SimpleNamespace(instance=instance))  # type: ignore[arg-type]
    next(hook)
    assert vars(instance)
    with pytest.raises(ZeroDivisionError if fails else StopIteration):
        hook.throw(ZeroDivisionError()) if fails else next(hook)
    assert not vars(instance)
