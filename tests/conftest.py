"""What every test can use: a prefix of its own, and proof that nothing stays in shared memory."""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The suites' asserts are in modules that are not tests themselves.
pytest.register_assert_rewrite("asgi_ipc.conformance")

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def prefix() -> Iterator[str]:
    """A prefix that nobody else uses; what was made under it is removed after the test."""
    name = f"t{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    from asgi_ipc import segment

    segment.destroy(name)


@pytest.fixture(scope="session", autouse=True)
def nothing_stays_in_shared_memory() -> Iterator[None]:
    """Fails the run, in the teardown of its last test, if anything of ours is left."""
    before = _ours()
    yield
    left = sorted(name for name in _ours() - before if not _is_of_another_run(name))
    assert not left, f"left in {SHARED_MEMORY}: {', '.join(left)}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names the tests that did not run because this machine lacks something, loudly."""
    lacking = Counter(
        (report.nodeid.partition("[")[0], reason.group(1))
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
        and (reason := re.match(r"(?:Skipped: )?(lacking: .*)", report.longrepr[2]))
    )
    if not lacking:
        return
    style = {"red": True, "bold": True}
    terminalreporter.section(f"{sum(lacking.values())} TESTS WERE NOT RUN HERE", **style)
    for (test, reason), cases in lacking.items():
        times = f" ({cases} cases)" if cases > 1 else ""
        terminalreporter.line(f"{test}{times}: {reason}", **style)


def _ours() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("asgi_ipc.*")}


def _is_of_another_run(name: str) -> bool:
    """Whether the first number in `name`, as in `prefix`, is another process that still runs."""
    number = re.search(r"\d+", name)
    if number is None or int(number.group()) == os.getpid():
        return False
    try:
        os.kill(int(number.group()), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
