"""The two ways to open shared memory by its name."""

from __future__ import annotations

import pytest

from asgi_ipc.segment import shm

from .segments import WAYS, use


@pytest.fixture(params=WAYS)
def shm_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let this process, and those that it forks, open shared memory in one of the ways."""
    way: str = request.param
    monkeypatch.setattr(shm, "_posix_ipc", None)  # put back afterwards
    use(way)
    return way
