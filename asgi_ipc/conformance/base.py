"""What both suites are built on. Must not import anything of the package around `conformance`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Protocol, TypeVar

import pytest

T = TypeVar("T")

Message = dict[str, Any]

# Seconds until something that must happen counts as not happening, if a layer does not set its own.
LIVENESS = 20.0

# Expiry, in seconds, for tests that wait for it.
SHORT = 0.2

# The contracts do not say how a bad argument is refused, only that it is.
REFUSED = (AssertionError, TypeError, ValueError)

MESSAGE: Message = {"text": "hello"}


_patience = LIVENESS


def patience() -> float:
    """Return the seconds that the layer under test is given: its `Contract.liveness`."""
    return _patience


def until(condition: Callable[[], T | None], bound: float | None = None) -> T:
    """Poll `condition` until it is true, and return its value; fail after `bound` seconds."""
    bound = bound or patience()
    deadline = time.monotonic() + bound
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still waiting after {bound} seconds"
        time.sleep(0.005)
    return value


def in_threads(functions: Iterable[Callable[[], T]], bound: float | None = None) -> list[T]:
    """Call each function in its own thread, all at once, and return their results."""

    def run(function: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    futures = []
    for function in functions:
        futures.append(future := Future[T]())
        threading.Thread(target=run, args=(function, future), daemon=True).start()
    return [future.result(timeout=bound or patience()) for future in futures]


class Layer(Protocol):
    """What the suites read of a layer of either kind."""

    @property
    def extensions(self) -> Sequence[str]: ...
    @property
    def expiry(self) -> float: ...
    @property
    def group_expiry(self) -> float: ...


class Contract:
    """The base of both suites. A subclass for a layer gives the fixture ``make_layer`` and the
    method ``make_peer``.

    ``make_layer``
        a fixture: a function that takes any of the options expiry and group_expiry (seconds, also
        fractions; a layer with a coarser clock rounds up), capacity and channel_capacity, and
        returns a new layer that shares its store with no other one. It closes what it made.
    """

    # {name of a test: what the layer is known not to do}. The name may end in the [id] of one
    # case. A test named here must fail: one that passes, or does not exist, is an error.
    known_failures: ClassVar[dict[str, str]] = {}

    # The same for tests that fail on some runs only, when processes or tasks meet at a bad moment.
    sometimes_fails: ClassVar[dict[str, str]] = {}

    # Seconds to wait for this layer where it may never answer.
    liveness: ClassVar[float] = LIVENESS

    # Seconds to which the layer rounds times.
    granularity: ClassVar[float] = 0.0

    # The options of the layer that was made last in this test.
    options: dict[str, Any]

    def make_peer(self, layer: Any) -> Any:
        """Return another client of the store of `layer`, with the same `options`; `layer` itself
        if a store cannot have two."""
        raise NotImplementedError(f"{type(self).__name__} lacks make_peer(layer): see its base")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        names = [*cls.known_failures, *cls.sometimes_fails]
        unknown = [name for name in names if not hasattr(cls, name.split("[")[0])]
        if unknown:
            raise TypeError(
                f"{cls.__name__} expects failures of tests that do not exist: {unknown}"
            )

    @pytest.fixture(autouse=True)
    def _expect_known_failures(self, request: pytest.FixtureRequest) -> None:
        for known, strict in ((self.known_failures, True), (self.sometimes_fails, False)):
            for name in {request.node.name, request.node.originalname} & set(known):
                request.node.add_marker(pytest.mark.xfail(strict=strict, reason=known[name]))

    @pytest.fixture(autouse=True)
    def _be_patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules[__name__], "_patience", self.liveness)

    @pytest.fixture
    def make(self, make_layer: Callable[..., Layer]) -> Callable[..., Layer]:
        """make_layer, which skips the test if the layer lacks one of the named extensions."""

        def make(*extensions: str, **options: Any) -> Layer:
            self.options = options
            layer = make_layer(**options)
            for extension in extensions:
                if not set(extension.split("|")) & set(layer.extensions):
                    pytest.skip(f"the layer does not have the extension {extension}")
            return layer

        return make

    @pytest.fixture
    def layer(self, make: Callable[..., Layer]) -> Layer:
        return make()

    @pytest.fixture
    def groups(self, make: Callable[..., Layer]) -> Layer:
        """A layer that has groups."""
        return make("groups")
