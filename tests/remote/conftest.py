"""What the tests of several machines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .servers import Server, servers


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One redis-server for all tests that leave it as it is."""
    with servers(tmp_path_factory.mktemp("redis")) as (server,):
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """An empty redis-server."""
    shared_server.ask("FLUSHALL")
    return shared_server
