"""Encoding as it was before the packed form of a message was looked at: the oracle of `test_codec`.

Every nested message was checked by a walk over its values. What may be sent, as which bytes, and
each error's text are to stay as they are here, so this file does not change with `asgi_ipc.codec`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from asgi_ipc.errors import InvalidMessage

MAX_DEPTH = 200  # nested lists and dicts; msgpack itself stops between 511 and 1024
INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
_all_plain = _PLAIN.issuperset
_all_allowed = (_PLAIN | _CONTAINERS).issuperset
_all_str = frozenset({str}).issuperset
_UINT64 = 0xCF  # the first byte of every int of 2**32 or more, too large ones included
_MANY = 100_000  # containers on one level; with more, a message may contain itself


def encode(message: Any) -> bytes:
    """Return `message` as bytes, or raise InvalidMessage."""
    if type(message) is not dict:
        message = _plain_copy(message)
    strict = True
    for key, value in message.items():
        if type(key) is not str or (type(value) is not str and type(value) not in _PLAIN):
            if not _is_plain(message):
                message = _plain_copy(message)
            strict = False
            break
    try:
        body = _pack(message, strict)
    except (TypeError, ValueError, OverflowError):
        body = _pack(_plain_copy(message))
    if _UINT64 in body and _has_uint64(message.values()):
        _plain_copy(message)
    return body


def _pack(message: object, strict: bool = False) -> bytes:
    packed: bytes = msgpack.packb(message, use_bin_type=True, strict_types=strict)
    return packed


def _is_plain(message: dict[Any, Any]) -> bool:
    """Return whether all values of a nested message have exactly a type that may be sent.

    It goes level by level, with set operations: a walk in Python takes far longer than packing.
    """
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for values in level:
            if type(values) is dict:
                if not _all_str(map(type, values)):
                    return False
                values = values.values()
            kinds = {*map(type, values)}
            if not _all_plain(kinds):
                if not _all_allowed(kinds):
                    return False
                deeper += [value for value in values if type(value) in _CONTAINERS]
        if not deeper:
            return True
        if len(deeper) > _MANY:
            return False
        level = deeper
    return False


def _has_uint64(values: Iterable[Any]) -> bool:
    """Return whether a plain message has an int that fits in 64 bits only without a sign."""
    for value in values:
        kind = type(value)
        if kind is int:
            if value > INT_MAX:
                return True
        elif kind in _CONTAINERS and _has_uint64(value.values() if kind is dict else value):
            return True
    return False


_REMEDY = (
    ". Convert it first, or give the layer the option default, a function that converts what "
    "cannot be sent"
)


def _plain_copy(message: object) -> dict[str, Any]:
    """Copy `message` with every value as its base type, or raise InvalidMessage."""
    if not isinstance(message, dict):
        raise InvalidMessage(f"a message must be a dict, not {_named(message)}")
    copied = _plain(message, "message", 0)
    assert isinstance(copied, dict)
    return copied


def _plain(value: object, path: str, depth: int) -> Any:
    kind = type(value)
    if isinstance(value, str):
        value = value if kind is str else str.__str__(value)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            remedy = "" if path.startswith("a key of") else _REMEDY
            raise InvalidMessage(
                f"{path} has a lone surrogate at position {error.start}, which is not valid text"
                + remedy
            ) from None
        return value
    if value is None or kind is bool or kind is float or kind is bytes:
        return value
    if isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidMessage(
                f"{path} is {int.__int__(value)}; ints must fit in signed 64 bits{_REMEDY}"
            )
        return int.__int__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, (dict, list, tuple)):
        if depth >= MAX_DEPTH:
            raise InvalidMessage(f"{path[:80]}… is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            copied = {}
            for key, item in value.items():
                if not isinstance(key, str):
                    raise InvalidMessage(f"{path} has the key {key!r:.80}; keys must be str")
                copied[_plain(key, f"a key of {path}", depth)] = _plain(
                    item, f"{path}[{str.__str__(key)!r}]", depth + 1
                )
            return copied
        return [_plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise InvalidMessage(
        f"{path} is {_named(value)}; a message can hold bytes, str, int, float, bool, None, "
        f"lists and dicts with str keys (str(...) makes text of a lazy string){_REMEDY}"
    )


def _named(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
