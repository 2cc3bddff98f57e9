"""The blocking layer over memory of one process, for tests. Must not differ from the real layer in
anything but its options: `in_process` has the memory."""

from __future__ import annotations

from ..sync import IPCChannelLayer
from .in_process import InProcessOptions


class InProcessChannelLayer(IPCChannelLayer):
    """`asgi_ipc.IPCChannelLayer` for tests, within one process.

    It takes the same options, and behaves the same in threads. All layers of one prefix in a
    process share one store, including asyncio ones (`asgi_ipc.testing.aio`). The store lives as
    long as one of these layers exists, closed or not. A child process begins with an empty store.
    """

    _options_class = InProcessOptions
