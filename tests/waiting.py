"""How tests wait: for a condition, in threads, and never longer than one limit.

Every bound is for liveness only: nothing here takes that long unless it hangs. Where the package
promises a time of its own, a test gives it as `bound`. Must not import pytest: the benchmarks start
their servers with the same helpers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar, Union

T = TypeVar("T")

# Seconds until something that must happen counts as not happening. Beside other work, what takes
# eight seconds on a machine of its own has taken more than a minute.
LIVENESS = 240.0

What = Union[str, Callable[[], str]]  # what is waited for, or a function that describes it


def until(
    condition: Callable[[], T | None],
    *,
    what: What = "",
    bound: float | None = None,
    pause: float = 0.01,
) -> T:
    """Poll `condition` every `pause` seconds until it is true, and return its value; fail after
    `bound` seconds, or LIVENESS."""
    deadline = time.monotonic() + (bound or LIVENESS)
    while not (value := condition()):
        assert time.monotonic() < deadline, _waited(bound, what)
        time.sleep(pause)
    return value


async def eventually(
    condition: Callable[[], Awaitable[T | None]], *, what: What = "", bound: float | None = None
) -> T:
    """Do the same in an event loop, with a condition that is awaited."""
    deadline = time.monotonic() + (bound or LIVENESS)
    while not (value := await condition()):
        assert time.monotonic() < deadline, _waited(bound, what)
        await asyncio.sleep(0.01)
    return value


def in_threads(functions: Iterable[Callable[[], T]]) -> list[T]:
    """Call each function in a thread of its own, all at once, and return their results."""
    from asgi_ipc.conformance.base import in_threads  # which imports pytest

    return in_threads(functions, LIVENESS)


def _waited(bound: float | None, what: What) -> str:
    described = what if isinstance(what, str) else what()
    return f"waited {bound or LIVENESS:g} s" + (f" for {described}" if described else "")
