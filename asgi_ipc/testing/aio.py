"""The asyncio layer over memory of one process, for tests: see `in_process`."""

from __future__ import annotations

from ..aio import IPCChannelLayer
from .in_process import InProcessOptions


class InProcessChannelLayer(IPCChannelLayer):
    """`asgi_ipc.aio.IPCChannelLayer` for tests, within one process.

    Takes the same options, and behaves the same in threads and event loops. Layers of one prefix in
    one process share a store, blocking ones (`asgi_ipc.testing.sync`) included. It lives as long as
    one of them, closed or not. A child process begins with an empty one.
    """

    _options_class = InProcessOptions
