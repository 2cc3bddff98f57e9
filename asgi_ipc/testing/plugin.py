"""The pytest plugin, which pytest finds by itself where this package is installed.

A test run has prefixes of its own: every layer that it makes, in whatever process, is apart from
those of programs that run with the same settings, and from those of other runs, pytest-xdist's
workers included. What is left in the end is removed, and a process that still uses it fails the
run. The ini option ``asgi_ipc_isolate = false`` turns that off.

A layer is begun anew for each test that uses one of the fixtures `asgi_ipc_isolated`,
`asgi_ipc_layer` and `asgi_ipc_sync_layer`; such a test fails if it leaves something behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from .isolation import Isolation

if TYPE_CHECKING:
    from ..aio import IPCChannelLayer as AsyncioLayer
    from ..sync import IPCChannelLayer as BlockingLayer

# The suites' asserts are in modules that are not tests themselves.
pytest.register_assert_rewrite("asgi_ipc.conformance")

_PREFIX = "test"
_run = pytest.StashKey[Isolation]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "asgi_ipc_isolate",
        "give the channel layers of a test run prefixes of their own (default: true)",
        type="bool",
        default=True,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # Before any conftest or other plugin can make a layer, or start a process that does.
    _begin(early_config)


def pytest_configure(config: pytest.Config) -> None:
    _begin(config)  # where a conftest named this plugin, so that it came too late for the other


def _begin(config: pytest.Config) -> None:
    if config.getini("asgi_ipc_isolate") and _run not in config.stash:
        config.stash[_run] = Isolation()
        config.stash[_run].begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_run, None)
    if run is not None:
        del config.stash[_run]
        run.end()


def pytest_report_header(config: pytest.Config) -> list[str]:
    run = config.stash.get(_run, None)
    return [] if run is None else [f"asgi_ipc: {run.suffix} is added to the prefix of each layer"]


def _fail(leaks: list[str]) -> None:
    if leaks:
        pytest.fail("left behind:\n" + "\n".join(leaks), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _asgi_ipc_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the run, in the teardown of its last test, if a process still uses a layer of it."""
    yield
    run = request.config.stash.get(_run, None)
    if run is not None:
        _fail(run.clean())


@pytest.fixture
def asgi_ipc_isolated(request: pytest.FixtureRequest) -> Iterator[Isolation]:
    """All layers begin empty in this test, and what is in shared memory afterwards is removed.

    The test fails if by then another process still uses a layer of it, or if a receive still waits
    in an event loop of this process.
    """
    run = request.config.stash.get(_run, None)
    isolation = Isolation() if run is None else run
    if run is None:
        isolation.begin()
    else:
        isolation.clean()
    yield isolation
    _fail(isolation.end() if run is None else isolation.clean())


@pytest.fixture
def asgi_ipc_layer(asgi_ipc_isolated: Isolation) -> AsyncioLayer:
    """An `asgi_ipc.aio.IPCChannelLayer`; another process reaches it by ``layer.prefix``."""
    from ..aio import IPCChannelLayer

    return IPCChannelLayer(_PREFIX)


@pytest.fixture
def asgi_ipc_sync_layer(asgi_ipc_isolated: Isolation) -> BlockingLayer:
    """An `asgi_ipc.IPCChannelLayer`; it and `asgi_ipc_layer` exchange messages."""
    from ..sync import IPCChannelLayer

    return IPCChannelLayer(_PREFIX)
