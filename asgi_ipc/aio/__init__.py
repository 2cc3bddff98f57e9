"""The asynchronous core, and the layers for asyncio: for Channels 4 and any asyncio program.

Importing this loads neither asyncio nor the several-machines mode: each layer is loaded when it is
asked for. The blocking layer stands on the same core, and needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..machines.aio import LocalAndRemoteChannelLayer
    from .layer import IPCChannelLayer

__all__ = ["IPCChannelLayer", "LocalAndRemoteChannelLayer"]

_MODULES = {"IPCChannelLayer": ".layer", "LocalAndRemoteChannelLayer": "..machines.aio"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
