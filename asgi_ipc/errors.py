"""All errors of the package, in one tree. Must not import a peer (Channels, asgiref) before it is
needed.

::

    IPCError
    ├── ChannelFull            capacity or memory is used up        (also that of the peers)
    ├── MessageTooLarge        over max_message_size                (also that of the peers)
    ├── InvalidName            a channel or group name              (TypeError)
    ├── InvalidMessage         a value that cannot be sent          (TypeError, ValueError)
    ├── InvalidOption          a constructor argument               (ValueError, TypeError)
    ├── NotAChannel            a send to the name of a group        (ValueError)
    ├── NotOwner               a receive on another process's name  (AssertionError)
    ├── LimitReached           a limit (groups, names, processes) is used up
    ├── LockTimeout            the holder of the lock is alive but stuck (TimeoutError)
    │   └── LockBusy           for a short time only; asyncio tries again, callers never see it
    ├── ReplyLost              an HTTP response broke off
    ├── RemoteUnavailable      another machine cannot be reached    (ConnectionError)
    ├── Reentered              a call within a call of the same thread (RuntimeError)
    ├── NoEventLoop            a wait where no asyncio loop runs    (RuntimeError)
    ├── NotSubscribed          a subscription outside its block     (RuntimeError)
    └── SegmentError           the shared memory itself             (OSError)
        ├── IncompatibleSegment    another layout, machine, libc or namespace
        ├── ForeignSegment         owned by another user, or open to all users
        ├── SegmentVanished        removed while in use
        ├── NoSuchLayer            no shared memory of that prefix    (FileNotFoundError)
        └── CorruptStore           bytes that no version of this package wrote
            ├── CorruptHeader          in the header, found while attaching
            └── LockLost               in the lock

``ChannelFull`` and ``MessageTooLarge`` are created when first needed. Each derives from the class
of the same name in every peer that is installed (Channels 2 and later, asgiref 1), so code written
for a peer catches them.
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
    """A message that is not a dict of values that can be sent; names the path to the value."""


class InvalidOption(IPCError, ValueError, TypeError):
    """A constructor option with a value that cannot work."""


class NotAChannel(IPCError, ValueError):
    """A send to a name that only a group has."""


class NotOwner(IPCError, AssertionError):
    """A receive on a process-specific channel that belongs to another process or layer."""


class LimitReached(IPCError):
    """A limit of the segment is used up; the text names it, and nothing was changed."""


class LockTimeout(IPCError, TimeoutError):
    """The lock was not released within ``lock_timeout`` seconds; the text names the holder."""


class LockBusy(LockTimeout):
    """The lock was not released within one short wait; the asyncio layer tries again."""

    def __init__(self, holder: int) -> None:
        super().__init__(f"the lock is busy (held by thread {holder})")
        self.holder = holder


class ReplyLost(IPCError):
    """An HTTP response that has begun cannot be completed; the connection has to end."""


class RemoteUnavailable(IPCError, ConnectionError):
    """The layer between machines does not answer; messages within this machine continue."""


class Reentered(IPCError, RuntimeError):
    """A signal handler or ``__del__`` called the layer while its thread was inside a call, or the
    thread of a layer between machines called that layer."""


class NoEventLoop(IPCError, RuntimeError):
    """A call of an asyncio layer has to wait, and no event loop of asyncio runs here."""


class NotSubscribed(IPCError, RuntimeError):
    """A subscription was used before its block was entered, or after it ended."""


class SegmentError(IPCError, OSError):
    """Something is wrong with the shared memory of a prefix."""


class IncompatibleSegment(SegmentError):
    """The live segment is of another layout version, libc, word size or namespace."""


class ForeignSegment(SegmentError, PermissionError):
    """The segment, its directory or its lock is owned by another user or open to all users."""


class SegmentVanished(SegmentError):
    """The segment was removed while this process was attached."""


class NoSuchLayer(SegmentError, FileNotFoundError):
    """There is no shared memory of that prefix; the text names the prefixes that exist."""


class CorruptStore(SegmentError):
    """The segment holds bytes that cannot be right; ``flush()`` makes it usable again."""

    _REMEDY = (
        ". flush() the layer, or stop its processes and remove it with asgi_ipc.segment.destroy()"
    )

    def __str__(self) -> str:
        return super().__str__() + self._REMEDY


class CorruptHeader(CorruptStore):
    """The header contradicts itself, or the segment is too short, while processes use it."""

    _REMEDY = ". Stop the processes of this prefix and remove it with asgi_ipc.segment.destroy()"


class LockLost(CorruptStore):
    """The lock itself holds bytes that cannot be right."""

    _REMEDY = CorruptHeader._REMEDY


# Where each peer has its class of the same name.
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
    # Two threads may both get here: all use the class that is stored first.
    return globals().setdefault(name, made)


def _peer_class(module: str, path: str) -> type[BaseException] | None:
    try:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            return None
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception:
        # Not installed, another major version, or a peer that cannot be imported in this process,
        # which then cannot catch its class either.
        return None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
