"""The blocking layer over memory of one process, for tests: see `in_process`."""

from __future__ import annotations

from ..sync import IPCChannelLayer
from .in_process import InProcessOptions


class InProcessChannelLayer(IPCChannelLayer):
    """`asgi_ipc.IPCChannelLayer` for tests, within one process.

    Takes the same options, and behaves the same in threads. Layers of one prefix in one process
    share a store, asyncio ones (`asgi_ipc.testing.aio`) included. It lives as long as one of them,
    closed or not. A child process begins with an empty one.
    """

    _options_class = InProcessOptions
