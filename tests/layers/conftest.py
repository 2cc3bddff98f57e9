"""What several files of this folder use: every layer of the package, to run a test with each. And
the helpers of the contract suites wait here as long as everything else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
import asgi_ipc.testing.aio
import asgi_ipc.testing.sync
from asgi_ipc import segment
from asgi_ipc.conformance import base

from ..waiting import LIVENESS

Make = Callable[..., Any]

ASYNCIO = {
    "asyncio": asgi_ipc.aio.IPCChannelLayer,
    "asyncio, in process": asgi_ipc.testing.aio.InProcessChannelLayer,
    "asyncio, several machines": asgi_ipc.aio.LocalAndRemoteChannelLayer,
}
BLOCKING = {
    "blocking": asgi_ipc.IPCChannelLayer,
    "blocking, in process": asgi_ipc.testing.sync.InProcessChannelLayer,
    "blocking, several machines": asgi_ipc.LocalAndRemoteChannelLayer,
}


@pytest.fixture(autouse=True)
def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_patience", LIVENESS)


def _maker(prefix: str, cls: Any) -> Iterator[Make]:
    names = set()

    def make(number: int = 1, **options: Any) -> Any:
        names.add(name := f"{prefix}-{number}")
        if not issubclass(
            cls, (asgi_ipc.LocalAndRemoteChannelLayer, asgi_ipc.aio.LocalAndRemoteChannelLayer)
        ):
            return cls(name, **options)
        names.add(f"{prefix}-remote")
        remote = {
            "BACKEND": "asgi_ipc.aio.IPCChannelLayer",
            "CONFIG": {"prefix": f"{prefix}-remote"},
        }
        return cls(remote, {"prefix": name, **options})

    yield make
    for name in names:
        segment.destroy(name)


@pytest.fixture(params=ASYNCIO.values(), ids=ASYNCIO.keys())
def make_asyncio(prefix: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from _maker(prefix, request.param)


@pytest.fixture(params=BLOCKING.values(), ids=BLOCKING.keys())
def make_blocking(prefix: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from _maker(prefix, request.param)
