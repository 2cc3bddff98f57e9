"""Every error the package raises, in one place.

::

    IPCError
    ├── ChannelFull            capacity or memory is used up        (also that of the peers)
    ├── MessageTooLarge        over max_message_size                (also that of the peers)
    ├── InvalidName            a channel or group name              (TypeError)
    ├── InvalidMessage         a value that cannot travel           (TypeError, ValueError)
    ├── InvalidOption          a constructor argument               (ValueError, TypeError)
    ├── NotAChannel            a group's name where a channel's is meant (ValueError)
    ├── NotOwner               a receive on another process's name  (AssertionError)
    ├── LimitReached           a named limit (groups, names, processes) is used up
    ├── LockTimeout            the lock's holder is alive but does not move (TimeoutError)
    │   └── LockBusy           for so short a time that asyncio tries again; callers never see it
    ├── ReplyLost              an HTTP response broke off in the middle
    ├── RemoteUnavailable      another machine cannot be reached    (ConnectionError)
    ├── Reentered              a call from inside a call of the same thread (RuntimeError)
    └── SegmentError           the shared memory itself             (OSError)
        ├── IncompatibleSegment    another layout, machine, libc or namespace
        ├── ForeignSegment         made by somebody else, or open to the world
        ├── SegmentVanished        removed while in use
        ├── NoSuchLayer            nothing of that prefix to look at  (FileNotFoundError)
        └── CorruptStore           bytes that no version of this package wrote
            ├── CorruptHeader          in the header that an attaching process finds
            └── LockLost               those of the lock itself

``ChannelFull`` and ``MessageTooLarge`` are made when first needed, because each derives from the
class of the same name of every peer that is installed (Channels 2 and later, asgiref 1): code
written against a peer catches ours. Importing this module imports no peer.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any


class IPCError(Exception):
    """Base of every error of this package."""


class InvalidName(IPCError, TypeError):
    """A channel or group name that the contracts do not allow."""


class InvalidMessage(IPCError, TypeError, ValueError):
    """A message that is not a dict of values that can travel; names the path to the value."""


class InvalidOption(IPCError, ValueError, TypeError):
    """A constructor option with a value that cannot work."""


class NotAChannel(IPCError, ValueError):
    """A send to the name of a group, which no channel bears."""


class NotOwner(IPCError, AssertionError):
    """A receive on a process-specific channel that belongs to another process or layer."""


class LimitReached(IPCError):
    """A named limit of the segment is used up; nothing was half done."""


class LockTimeout(IPCError, TimeoutError):
    """The lock was not released within ``lock_timeout`` seconds; names the holder."""


class LockBusy(LockTimeout):
    """The lock was not released within one stretch of waiting; the asyncio shell tries again."""

    def __init__(self, holder: int) -> None:
        super().__init__(f"the lock is busy (held by thread {holder})")
        self.holder = holder


class ReplyLost(IPCError):
    """An HTTP response that had begun will not be completed; the connection has to end."""


class RemoteUnavailable(IPCError, ConnectionError):
    """The layer between machines does not answer; what stays on this machine goes on."""


class Reentered(IPCError, RuntimeError):
    """A signal handler or ``__del__`` called the layer while its thread was inside a call."""


class SegmentError(IPCError, OSError):
    """Something is wrong with the shared memory of a prefix."""


class IncompatibleSegment(SegmentError):
    """The live segment was made by another layout version, libc, word size or namespace."""


class ForeignSegment(SegmentError, PermissionError):
    """The segment, its directory or its lock is owned by somebody else or open to the world."""


class SegmentVanished(SegmentError):
    """The segment was unlinked while this process was attached."""


class NoSuchLayer(SegmentError, FileNotFoundError):
    """There is no shared memory of that prefix to look at; names those that exist."""


class CorruptStore(SegmentError):
    """The segment holds bytes that cannot be right; ``flush()`` makes it usable again."""

    _REMEDY = (
        ". flush() the layer, or stop its processes and remove it with asgi_ipc.segment.destroy()"
    )

    def __str__(self) -> str:
        return super().__str__() + self._REMEDY


class CorruptHeader(CorruptStore):
    """The header contradicts itself, or the segment was cut short, while processes use it."""

    _REMEDY = ". Stop the processes of this prefix and remove it with asgi_ipc.segment.destroy()"


class LockLost(CorruptStore):
    """The bytes of the lock itself cannot be right."""

    _REMEDY = CorruptHeader._REMEDY


# Where each peer keeps its class of the same name.
_PEERS = {
    "ChannelFull": (
        ("channels.exceptions", "ChannelFull"),
        ("asgiref.base_layer", "BaseChannelLayer.ChannelFull"),
    ),
    "MessageTooLarge": (
        ("channels.exceptions", "MessageTooLarge"),
        ("asgiref.base_layer", "BaseChannelLayer.MessageTooLarge"),
    ),
}
_DOCS = {
    "ChannelFull": "The channel is at capacity, or the message memory is used up.",
    "MessageTooLarge": "The message is larger than ``max_message_size`` bytes once packed.",
}

if TYPE_CHECKING:

    class ChannelFull(IPCError):
        """The channel is at capacity, or the message memory is used up."""

    class MessageTooLarge(IPCError):
        """The message is larger than ``max_message_size`` bytes once packed."""


def __getattr__(name: str) -> Any:
    if name not in _PEERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    bases: list[type[BaseException]] = [IPCError]
    for module, path in _PEERS[name]:
        base = _peer_class(module, path)
        if base is not None and not any(issubclass(known, base) for known in bases):
            bases.append(base)
    made = type(name, tuple(bases), {"__doc__": _DOCS[name], "__module__": __name__})
    # Two threads may both come here: the first class stored is the one that everybody uses.
    return globals().setdefault(name, made)


def _peer_class(module: str, path: str) -> type[BaseException] | None:
    try:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            return None
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception:
        # Not installed, another major version, or a peer that cannot be imported as the process
        # is set up: then nobody here can be catching its class.
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
