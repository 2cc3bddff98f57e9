"""The blocking layer over memory of one process, for tests: see `in_process`."""

from __future__ import annotations

from typing import Any

from ..sync import IPCChannelLayer
from .in_process import stay_in_process


class InProcessChannelLayer(IPCChannelLayer):
    """`asgi_ipc.IPCChannelLayer` for tests, within one process.

    Takes the same options, and behaves the same in threads. Layers of one prefix in one process
    share a store, asyncio ones (`asgi_ipc.testing.aio`) included. It lives as long as one of them,
    closed or not. A child process begins with an empty one.
    """

    def __init__(self, prefix: str = "asgi", **options: Any) -> None:
        super().__init__(prefix, **options)
        stay_in_process(self._core)
