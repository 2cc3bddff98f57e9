"""A channel layer for one machine: processes with the same prefix send each other messages over
POSIX shared memory.

- `asgi_ipc.IPCChannelLayer` is blocking, for Channels 1 (daphne 1.x, Django workers) and threads;
- `asgi_ipc.aio.IPCChannelLayer` is for Channels 4 and for any asyncio program;
- `LocalAndRemoteChannelLayer`, of both kinds, reaches other machines through another layer.

Importing this imports neither Django, Channels, Twisted nor Redis.
"""

import sys
from typing import TYPE_CHECKING, Any

if sys.implementation.name != "cpython":
    # The lock is taken without releasing the interpreter (ctypes.PyDLL), and an attachment is
    # released when nothing refers to it any more: neither is so elsewhere.
    raise ImportError(
        f"asgi_ipc runs on CPython only, and this is {sys.implementation.name}: run the processes "
        "that use it on CPython"
    )

# First: what else is imported may not outlive such an interpreter.
try:
    import ctypes as _ctypes  # noqa: F401
except ImportError as _error:
    raise ImportError(
        f"asgi_ipc needs ctypes, and cannot import it: {_error}. In Python 3.12 that is so in an "
        "interpreter with its own GIL; use Python 3.13 or later there, or an interpreter that "
        "shares the GIL"
    ) from _error

from . import errors
from .sync import IPCChannelLayer

if TYPE_CHECKING:
    from .errors import ChannelFull, MessageTooLarge
    from .machines.sync import LocalAndRemoteChannelLayer

__version__ = "2.0.0"

__all__ = [
    "ChannelFull",
    "IPCChannelLayer",
    "LocalAndRemoteChannelLayer",
    "MessageTooLarge",
    "__version__",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "LocalAndRemoteChannelLayer":  # imports asyncio, which the others do without
        from .machines.sync import LocalAndRemoteChannelLayer

        return LocalAndRemoteChannelLayer
    # These two derive from the peers' classes, so they are made when first asked for.
    if name in ("ChannelFull", "MessageTooLarge"):
        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
