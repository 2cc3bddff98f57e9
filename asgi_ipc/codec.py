"""Turns messages into bytes and back, by msgpack, and encrypts them if asked to. Must not know
where they go.

Messages may hold the types that both contracts list and no others, so that what a sender may send
never depends on the receiver. msgpack accepts more: ints up to 2**64, any map key, bytearray,
timestamps, and nearly any depth. In a flat message, the types are checked one by one. A nested
message is packed with strict types, which refuses most of what may not be sent. The rest of it
shows when a short message is unpacked again, all of that in C. In a longer one, a few operations
for all values of a level find it in less time, most of all with the collector's list of what
objects hold. Only a message with another type (a subclass, or a value that cannot be sent) is
walked value by value. That finds the path that the error names, and the values that the option
``default`` converts.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Set
from itertools import chain
from typing import Any

import msgpack

from .errors import InvalidMessage, InvalidOption

MAX_DEPTH = 200  # nested lists and dicts; msgpack itself stops between 511 and 1024
INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
_all_plain = _PLAIN.issuperset
_all_allowed = (_PLAIN | _CONTAINERS).issuperset
_all_str = frozenset({str}).issuperset
_chained = chain.from_iterable
# Where the first is not in a packed message, no int of 2**63 or more is: those have the second.
_UINT64, _huge = 0xCF, re.compile(rb"\xcf[\x80-\xff]").search
# What begins bytes (a bytearray, too), and what begins the types of msgpack's own.
_OPAQUE = bytes([*range(0xC4, 0xCA), *range(0xD4, 0xD9)])
# What begins lists and dicts.
_NESTED = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
# If msgpack is in Python, unpacking takes longer than looking at the values.
_IN_C = msgpack.Packer.__module__ != "msgpack.fallback"
# The collector lists what lists, tuples and dicts hold. Without the GIL, it would stop all other
# threads meanwhile. Since Python 3.13, it does not list what `vars(...)` of an object holds.
_LISTED = (
    sys.implementation.name == "cpython" and "t" not in sys.abiflags and sys.version_info < (3, 13)
)
_SHORT = 400 if _LISTED else 4000  # bytes, up to which unpacking takes less time
_MANY = 1_000_000  # values on one level; with more, a message may contain itself

Default = Callable[[Any], Any]  # turns a value that cannot be sent into one that can

# msgpack 1.0 and later return text as str by default.
_unpack: Callable[[bytes], object] = msgpack.unpackb
if msgpack.version < (1,):
    _unpack = lambda body: msgpack.unpackb(body, raw=False)  # noqa: E731


def _packer(strict_types: bool) -> Callable[[object], bytes]:
    """Return a function that packs, from any thread.

    One packer in C serves all threads where the GIL is always on: it runs no Python code and keeps
    the GIL. Otherwise, and with msgpack's fallback in Python, each call makes a packer. Whether the
    GIL is on right now says nothing: an import turns it on for a moment.
    """
    if "t" not in sys.abiflags and _IN_C:
        shared: Callable[[object], bytes] = msgpack.Packer(
            use_bin_type=True, strict_types=strict_types
        ).pack
        return shared

    def pack(message: object) -> bytes:
        packed: bytes = msgpack.packb(message, use_bin_type=True, strict_types=strict_types)
        return packed

    return pack


class DecodeError(Exception):
    """A body that does not decode: wrong key, or no message. The receiver drops and counts it."""


class Codec:
    """Packs and unpacks messages. `keys` are the ``symmetric_encryption_keys`` option; `default`
    is the option ``default``, as a callable."""

    def __init__(
        self, keys: Iterable[str | bytes] | None = None, default: Default | None = None
    ) -> None:
        self._default = default
        self._pack = _packer(strict_types=False)
        self._pack_strictly = _packer(strict_types=True)
        self._fernet = _fernet(keys) if keys is not None else None
        self.is_plain = self._fernet is None  # the bytes that msgpack makes are sent as they are
        self.unpack = _unpack if self._fernet is None else self._decrypt_and_unpack

    def encode(self, message: dict[str, Any]) -> bytes:
        """Return `message` as bytes; InvalidMessage names the path to a value that is refused."""
        if type(message) is not dict:
            message = self.plain(message)
        pack: Callable[[dict[str, Any]], bytes] = self._pack_strictly
        for key, value in message.items():
            if type(key) is not str or (type(value) is not str and type(value) not in _PLAIN):
                pack = self._pack_nested
                break
        try:
            body = pack(message)
            if _UINT64 in body and _huge(body) and _has_uint64(message):
                raise OverflowError
        except (TypeError, ValueError, OverflowError, RecursionError):
            body = self._pack(self.plain(message))  # unless the copy raises, and says why
        if self._fernet is not None:
            body = self._fernet.encrypt(body)
        return body

    def _pack_nested(self, message: dict[Any, Any]) -> bytes:
        """Pack `message` if all of it may be sent as it is; else raise TypeError."""
        try:
            body = self._pack_strictly(message)
        except TypeError:  # a tuple, a subclass, or what cannot be sent
            if _is_plain(message, None):
                return self._pack(message)
            raise
        if (len(body) <= _SHORT and _shows_plain(body)) or _is_plain(message, body):
            return body
        raise TypeError

    def plain(self, message: object) -> dict[str, Any]:
        """Copy `message` with every value as its base type, or as what `default` makes of it.
        Raises InvalidMessage, and what `default` raises."""
        if not issubclass(type(message), dict):
            raise InvalidMessage(f"a message must be a dict, not {_named(message)}")
        copied = _plain(message, "message", 0, self._default)
        assert isinstance(copied, dict)
        return copied

    def decode(self, body: bytes) -> dict[str, Any]:
        """Return the message in `body`, as a new dict, or raise DecodeError."""
        try:
            message = self.unpack(body)
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {error}") from None
        if type(message) is not dict:
            raise DecodeError(f"a {type(message).__name__}, not a dict")
        return message

    def _decrypt_and_unpack(self, body: bytes) -> object:
        assert self._fernet is not None
        return _unpack(self._fernet.decrypt(bytes(body)))


def is_flat(message: dict[str, Any]) -> bool:
    """Return whether a decoded message has no lists or dicts, so that its copies share nothing."""
    return _all_plain(map(type, message.values()))


def _is_plain(message: dict[Any, Any], body: bytes | None) -> bool:
    """Return whether all values of a nested message have exactly a type that may be sent. `body` is
    what it was packed to, with strict types; None if it was not. False proves nothing.

    It goes level by level, with few operations in C for all values of a level: a walk in Python
    takes far longer than packing.
    """
    # Without one of these bytes, packing has refused all other types.
    by_type = not _LISTED or body is None or any(map(body.__contains__, _OPAQUE))
    kinds: Set[type] = _CONTAINERS  # that may be among the values
    values = dicts = [message]
    held = _held(message)
    for _ in range(MAX_DEPTH - 1):
        # If the collector lists no more than the values, all keys are str.
        if dicts and (
            not _LISTED
            or sum(map(len, dicts)) != len(held if len(dicts) == len(values) else _held(*dicts))
        ):
            # A subclass of str, which is not among the keys that were packed, can say of any other
            # key that they are equal.
            keys = _chained(dicts) if body is None else set().union(*dicts)
            if not _all_str(map(type, keys)):
                return False
        if by_type:
            kinds = {*map(type, held)}
            if _all_plain(kinds):
                return True
            if not _all_allowed(kinds):
                return False
        values, held = held, _held(*held)
        if not held:
            return True
        if body is None and len(held) > _MANY:
            return False
        dicts = [value for value in values if type(value) is dict] if dict in kinds else []
    return False


def _has_uint64(message: dict[str, Any]) -> bool:
    """Return whether a plain message has an int that fits in 64 bits only without a sign."""
    values: list[Any] = [message]
    while values:
        if [value for value in values if type(value) is int and value > INT_MAX]:
            return True
        values = _held(*values)
    return False


def _held_by(*values: Any) -> list[Any]:
    """Return what the lists, tuples and dicts among some values hold."""
    held: list[Any] = []
    for value in values:
        if type(value) is dict:
            held += value.values()
        elif type(value) in _CONTAINERS:
            held += value
    return held


# The other values that may be sent hold nothing. Of a dict that has or had a key that is no str,
# the collector lists the keys as well.
_held: Callable[..., list[Any]] = gc.get_referents if _LISTED else _held_by


def _shows_plain(body: bytes) -> bool:
    """Return whether a message that was packed strictly may be sent, as far as its packed form
    shows. False proves nothing: bytes look like a bytearray, and numbers may look like bytes."""
    if (
        not _IN_C
        or _OPAQUE[0] in body
        or len(body) - len(body.translate(None, _NESTED)) > MAX_DEPTH
    ):
        return False
    try:
        # With raw=True, which is faster, text becomes bytes. So do keys, and others are refused.
        msgpack.unpackb(
            body, raw=True, strict_map_key=True, max_bin_len=0, max_ext_len=0, ext_hook=_refuse
        )
    except ValueError:
        return False
    return True


def _refuse(*_: object) -> object:
    raise ValueError


def _plain(value: Any, path: str, depth: int, default: Default | None) -> Any:
    """Copy one value. Of a subclass, what it holds is sent: none of its methods is called, which
    could say something else, or fail. Its ``__class__`` is not read either: lazy objects use it to
    pretend to be what they will become."""
    kind = type(value)
    if issubclass(kind, str):
        value = value if kind is str else str.__str__(value)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            why = f"has a lone surrogate at position {error.start}, which is not valid text"
            return _converted(value, path, depth, default, why)
        return value
    if value is None or kind is bool or kind is float or kind is bytes:
        return value
    if issubclass(kind, int):
        value = int.__int__(value)
        if not INT_MIN <= value <= INT_MAX:
            why = f"is {_digits(value)}; ints must fit in signed 64 bits"
            return _converted(value, path, depth, default, why)
        return value
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, bytes):
        return bytes.__getitem__(value, slice(None))
    if issubclass(kind, (dict, list, tuple)):
        if depth >= MAX_DEPTH:
            raise InvalidMessage(f"{path[:80]}… is nested deeper than {MAX_DEPTH} levels")
        if issubclass(kind, dict):
            copied = {}
            for key, item in dict.items(value):
                if not issubclass(type(key), str):
                    raise InvalidMessage(f"{path} has the key {_shown(key)}; keys must be str")
                copied[_plain(key, f"a key of {path}", depth, _NO_DEFAULT)] = _plain(
                    item, f"{path}[{str.__str__(key)!r}]", depth + 1, default
                )
            return copied
        items = list.__iter__(value) if issubclass(kind, list) else tuple.__iter__(value)
        return [_plain(item, f"{path}[{i}]", depth + 1, default) for i, item in enumerate(items)]
    why = (
        f"is {_named(value)}; a message can hold bytes, str, int, float, bool, None, lists and "
        "dicts with str keys (str(...) makes text of a lazy string)"
    )
    return _converted(value, path, depth, default, why)


def _converted(value: Any, path: str, depth: int, default: Default | None, why: str) -> Any:
    """What `default` makes of a value that cannot be sent, checked again. `why`: the reason."""
    if default is None:
        raise InvalidMessage(
            f"{path} {why}. Convert it first, or give the layer the option default, a function "
            "that converts what cannot be sent"
        )
    if default is _NO_DEFAULT:
        raise InvalidMessage(f"{path} {why}")
    try:
        made = default(value)
    except TypeError as error:
        raise InvalidMessage(f"{path} {why}. The option default refused it: {error}") from error
    if not issubclass(type(made), (dict, list, tuple)):
        # For one value it is called once, or it could be called for ever.
        return _plain(made, f"what the option default made of {path}", depth, _NO_DEFAULT)
    return _plain(made, path, depth + 1, default)


def _no_default(value: Any) -> Any:
    raise AssertionError("never called")


# Stands for the option where it does not apply: to keys, and to what it has returned itself.
_NO_DEFAULT: Default = _no_default


def _digits(value: int) -> str:
    """An int as text; Python refuses to make decimal digits of a very large one."""
    return str(value) if value.bit_length() < 1000 else f"an int of {value.bit_length()} bits"


def _shown(value: object) -> str:
    """The start of what `repr` says of a value, which may fail."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"of {_named(value)}"


def _named(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _fernet(keys: Iterable[str | bytes]) -> Any:
    """Return a MultiFernet: the first key encrypts, all decrypt. Each key is hashed by SHA-256."""
    if isinstance(keys, (str, bytes)):
        raise InvalidOption(
            "symmetric_encryption_keys must be a list of keys, not one string: write [key]"
        )
    made = []
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise InvalidOption(
            "symmetric_encryption_keys needs the cryptography package: "
            "pip install asgi_ipc[cryptography]"
        ) from error
    for key in keys:
        if not isinstance(key, (str, bytes)):
            raise InvalidOption(
                f"symmetric_encryption_keys must hold str or bytes, not {_named(key)}"
            )
        if not key:
            raise InvalidOption(
                "symmetric_encryption_keys holds an empty key, which everybody knows. Set the "
                "variable that it comes from, or leave out the option to send in the clear"
            )
        digest = hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()
        made.append(Fernet(base64.urlsafe_b64encode(digest)))
    return MultiFernet(made) if made else None
