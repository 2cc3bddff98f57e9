"""Fixtures for the tests of several machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from .servers import Server, servers


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One redis-server for all tests that do not stop or change it."""
    with servers(tmp_path_factory.mktemp("redis")) as (server,):
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """An empty redis-server."""
    shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture
async def machine(prefix: str) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that makes a layer on machine `number`, a new client with each call."""
    from asgi_ipc import segment
    from asgi_ipc.aio import LocalAndRemoteChannelLayer

    made: list[Any] = []

    def make(number: int, remote: dict[str, Any], **options: Any) -> Any:
        local = {"prefix": f"{prefix}-{number}", **options}
        made.append(LocalAndRemoteChannelLayer(remote, local, remote_timeout=3))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()
    for name in {layer.prefix for layer in made}:
        segment.destroy(name)
