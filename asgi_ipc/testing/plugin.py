"""The pytest plugin, which pytest finds by itself if this package is installed. Must not import the
layers before a test needs them.

Each test run has its own prefixes. Every layer that it makes, in any process, is separate from
those of programs with the same settings and from those of other runs, including each worker of
pytest-xdist. At the end, the plugin removes what is left; if a process still uses it, the run
fails. The ini option ``asgi_ipc_isolate = false`` turns this off.

Layers are empty at the start of a test that uses one of the fixtures `asgi_ipc_isolated`,
`asgi_ipc_layer` and `asgi_ipc_sync_layer`. Such a test fails if it leaves something behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from .isolation import Isolation

if TYPE_CHECKING:
    from ..aio import IPCChannelLayer as AsyncioLayer
    from ..sync import IPCChannelLayer as BlockingLayer

# The asserts of the suites are in modules that pytest does not recognise as tests.
pytest.register_assert_rewrite("asgi_ipc.conformance")

_PREFIX = "test"
_run = pytest.StashKey[Isolation]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "asgi_ipc_isolate",
        "give each test run separate prefixes for its channel layers (default: true)",
        type="bool",
        default=True,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # Before any conftest or plugin can make a layer, or start a process that makes one.
    _begin(early_config)


def pytest_configure(config: pytest.Config) -> None:
    _begin(config)  # if a conftest names this plugin, it is too late for the other hook


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
    """Fail the run, in the teardown of its last test, if a process still uses its layers."""
    yield
    run = request.config.stash.get(_run, None)
    if run is not None:
        _fail(run.clean())


@pytest.fixture
def asgi_ipc_isolated(request: pytest.FixtureRequest) -> Iterator[Isolation]:
    """Make all layers empty at the start of the test, and remove their shared memory at its end.

    The test fails if another process still uses one of its layers then, or if a receive still waits
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
    """Return an `asgi_ipc.aio.IPCChannelLayer`. Other processes reach it by ``layer.prefix``."""
    from ..aio import IPCChannelLayer

    return IPCChannelLayer(_PREFIX)


@pytest.fixture
def asgi_ipc_sync_layer(asgi_ipc_isolated: Isolation) -> BlockingLayer:
    """Return an `asgi_ipc.IPCChannelLayer`. It exchanges messages with `asgi_ipc_layer`."""
    from ..sync import IPCChannelLayer

    return IPCChannelLayer(_PREFIX)
