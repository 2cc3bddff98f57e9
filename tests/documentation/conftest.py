"""The redis-server of the tests of several machines, for the page that is about them."""

from tests.machines.conftest import server, shared_server

__all__ = ["server", "shared_server"]
