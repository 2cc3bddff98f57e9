"""What every test can use: a prefix of its own, and proof that a run leaves nothing behind.

Also how the tests are shared out among several processes (``pytest -n``).
"""

from __future__ import annotations

import gc
import os
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from . import proofs
from .leftovers import VARIABLE, Leftovers
from .locks import watched

# The suites' asserts are in modules that are not tests themselves.
pytest.register_assert_rewrite("asgi_ipc.conformance")

TESTS = Path(__file__).parent
QUICK = {"unit"}  # the folders whose tests come last, to fill the gaps
ENDING = 10.0  # seconds that a process may take to end once it was told to

leftovers = pytest.StashKey[Leftovers]()
left = pytest.StashKey[list[str]]()


def own_prefix() -> Iterator[str]:
    """A prefix that nobody else uses; what was made under it is removed in the end."""
    name = f"t{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    from asgi_ipc import segment

    segment.destroy(name)


prefix = pytest.fixture(own_prefix, name="prefix")
module_prefix = pytest.fixture(own_prefix, scope="module", name="module_prefix")


@pytest.fixture
def no_garbage() -> None:
    """For tests that count descriptors: nothing that earlier tests have left is freed meanwhile.

    What is there stays out of all later collections, too. Each would go through all libraries.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def pure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that attach in this test use the Python code alone, which is what it is about."""
    from asgi_ipc.aio import session

    monkeypatch.setattr(session, "usual", lambda *_: session.NEVER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Fail a test that logs anything under a lock of the package."""
    with watched():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Let go of what a test of a class has kept. pytest holds the object of each test until the run
    ends. Else the child of each later fork would have to leave the layers of all of them."""
    instance = getattr(item, "instance", None)  # of a TestCase there is none afterwards
    try:
        return (yield)
    finally:
        getattr(instance, "__dict__", {}).clear()


# -- nothing is left ------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        inside = VARIABLE in os.environ  # a run that a test of another run has started
        config.stash[leftovers] = Leftovers()
        if os.environ.get("ASGI_IPC_TEST_LENGTH") == "full" and not inside:
            config.pluginmanager.register(proofs.Writer())
        if config.getoption("numprocesses", None):
            # The tests are in other processes, which have to be told.
            signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    """Fail the run if it leaves a segment, a file or a process behind; and remove these.

    Called when all fixtures and all workers have ended, and before the summary is written.
    """
    result = yield
    found = session.config.stash.get(leftovers, None)
    if found is None:
        return result
    deadline = time.monotonic() + ENDING
    while found.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    session.config.stash[left] = found.remove()
    if session.config.stash[left] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what was left behind, and the tests that this machine lacks something for, loudly."""
    style = {"red": True, "bold": True}
    if lines := config.stash.get(left, []):
        terminalreporter.section(f"{len(lines)} THINGS WERE LEFT BEHIND", **style)
        for line in lines:
            terminalreporter.line(line, **style)
    lacking = Counter(
        (report.nodeid.partition("[")[0], reason.group(1))
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
        and (reason := re.match(r"(?:Skipped: )?(lacking: .*)", report.longrepr[2]))
    )
    if not lacking:
        return
    terminalreporter.section(f"{sum(lacking.values())} TESTS WERE NOT RUN HERE", **style)
    for (test, reason), cases in lacking.items():
        times = f" ({cases} cases)" if cases > 1 else ""
        terminalreporter.line(f"{test}{times}: {reason}", **style)


# -- several processes ----------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: two more than there are processors, since many tests wait for something."""
    return (os.cpu_count() or 1) + 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several processes begin with what takes long, so that they end at the same time. Else the
    order is mixed, the same in each run: the tests of some folders wait most of the time, and those
    of others keep a processor busy. Files whose tests stay together come first, in their own order:
    pytest has put side by side what needs the same fixture."""
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: (
                not QUICK.isdisjoint(item.path.parts),
                0 if shares_something(item.path) else crc32(item.nodeid.encode()),
            )
        )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the collector pass over what all tests need. Else each full collection would walk it, and
    one in a forked process would copy it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go one by one to the next process that is free. Those of a file stay together where
    they share what takes long to make."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if shares_something(TESTS.parent / file) else nodeid

    return Scheduling(config, log)


@cache
def shares_something(file: Path) -> bool:
    """Whether a file of tests has a fixture that several of its tests share."""
    return 'scope="module"' in file.read_text(encoding="utf-8")
