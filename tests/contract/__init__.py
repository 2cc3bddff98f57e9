"""The channel layer contracts as suites of tests: one test for each sentence, for any layer.

``channels1.Channels1Contract`` and ``channels4.Channels4Contract`` are base classes; a layer is put
to the test by a subclass that makes it. The numbers in the docstrings are those of the contracts'
lines: M for messages and channels, A for Channels 1, B for Channels 4. The suites must not know
any layer: what only ours promise is in ``tests/test_sync_layer.py`` and ``test_aio_layer.py``.

Nothing here is timed. A bound says only that something comes at all.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, ClassVar

import pytest

from ..environments import child_environment

# Seconds until something that must happen counts as not happening.
LIVENESS = 20.0

# Expiry, in seconds, for tests that wait for it.
SHORT = 0.2

# The contracts do not say how a bad argument is refused, only that it is.
REFUSED = (AssertionError, TypeError, ValueError)

MESSAGE = {"text": "hello"}


def until(condition: Callable[[], Any], bound: float = LIVENESS) -> Any:
    """Polls `condition` until it is true, and returns its value; fails after `bound` seconds."""
    deadline = time.monotonic() + bound
    while not (value := condition()):
        assert time.monotonic() < deadline, f"nothing came of it within {bound} seconds"
        time.sleep(0.005)
    return value


def in_threads(functions: Iterable[Callable[[], Any]]) -> list[Any]:
    """Calls each function in a thread of its own, all at once; their results."""

    def run(function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    futures = []
    for function in functions:
        futures.append(future := Future[Any]())
        threading.Thread(target=run, args=(function, future), daemon=True).start()
    return [future.result(timeout=LIVENESS) for future in futures]


def run_python(source: str) -> str:
    """What a new interpreter prints that runs `source`, which must succeed."""
    run = subprocess.run(
        [sys.executable, "-c", source],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=5 * LIVENESS,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout.strip()


class Contract:
    """What both suites share. A subclass for a layer gives ``make_layer`` and ``make_peer``.

    ``make_layer``
        a fixture: a function that takes any of the options expiry, group_expiry, capacity and
        channel_capacity, and returns a new layer that shares its store with no other one.
    ``make_peer(layer)``
        another client of the same store; `layer` itself where a store cannot have two.
    """

    # {name of a test: what the layer is known not to do}. The name may end in the [id] of one
    # case. A test named here must fail: one that passes, or does not exist, is an error.
    known_failures: ClassVar[dict[str, str]] = {}

    # How long this layer is given where it may never answer.
    liveness: ClassVar[float] = LIVENESS

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        unknown = [name for name in cls.known_failures if not hasattr(cls, name.split("[")[0])]
        assert not unknown, f"{cls.__name__}.known_failures names no tests: {unknown}"

    def make_peer(self, layer: Any) -> Any:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _expect_known_failures(self, request: pytest.FixtureRequest) -> None:
        for name in {request.node.name, request.node.originalname} & set(self.known_failures):
            reason = self.known_failures[name]
            request.node.add_marker(pytest.mark.xfail(strict=True, reason=reason))

    @pytest.fixture
    def make(self, make_layer: Callable[..., Any]) -> Callable[..., Any]:
        """make_layer, which skips the test where the layer lacks one of the named extensions."""

        def make(*extensions: str, **options: Any) -> Any:
            layer = make_layer(**options)
            for extension in extensions:
                if not set(extension.split("|")) & set(layer.extensions):
                    pytest.skip(f"the layer does not have the extension {extension}")
            return layer

        return make

    @pytest.fixture
    def layer(self, make: Callable[..., Any]) -> Any:
        return make()

    @pytest.fixture
    def groups(self, make: Callable[..., Any]) -> Any:
        """A layer that has groups."""
        return make("groups")
