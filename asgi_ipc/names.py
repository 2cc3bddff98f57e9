"""Channel and group names: what the contracts allow, and how a name is taken apart. A leaf.

The rules are M5 of both contracts: ASCII letters, digits, ``-``, ``_`` and ``.``; in a channel
name at most one ``?`` (single-reader) or ``!`` (process-specific); fewer than 100 characters.
"""

from __future__ import annotations

import re
from typing import Any

from .errors import InvalidName

MAX_NAME = 99  # characters, which for ASCII are bytes; asgiref's conformance suite: under 100

_CHANNEL = re.compile(r"[a-zA-Z0-9._-]+(?:\?[a-zA-Z0-9._-]+|![a-zA-Z0-9._-]*)?").fullmatch
_GROUP = re.compile(r"[a-zA-Z0-9._-]+").fullmatch
_ALLOWED = "ASCII letters, digits, '-', '_' and '.'"


def check_channel(name: Any) -> str:
    """Return `name` if it is the name of a channel that can be sent to, else raise InvalidName."""
    if isinstance(name, str) and len(name) <= MAX_NAME and _CHANNEL(name):
        return name
    raise InvalidName(_complaint("channel", name))


def check_group(name: Any) -> str:
    """Return `name` if it is the name of a group, else raise InvalidName."""
    if isinstance(name, str) and len(name) <= MAX_NAME and _GROUP(name):
        return name
    raise InvalidName(_complaint("group", name))


def check_receive(name: Any) -> str:
    """Return `name` if blocking receive takes it: process-specific names only up to the ``!``."""
    check_channel(name)
    if "!" in name and not name.endswith("!"):
        raise InvalidName(
            f"channel {name!r}: a receive names a process-specific channel only up to the '!' "
            f"({name[: name.index('!') + 1]!r}); the full name comes back with each message"
        )
    return str(name)


def split(name: str) -> tuple[str, str]:
    """Take a valid channel name apart: the queue it is kept in, and the local part ("" if none).

    The queue of a process-specific channel is the part up to and including ``!`` (M7).
    """
    queue, mark, local = name.partition("!")
    return queue + mark, local


def _complaint(kind: str, name: Any) -> str:
    if not isinstance(name, str):
        return f"a {kind} name must be a str, not {type(name).__name__}: {name!r:.80}"
    if not name:
        return f"a {kind} name must not be empty"
    if len(name) > MAX_NAME:
        return f"{kind} name {name!r} has {len(name)} characters; {MAX_NAME} are allowed"
    if kind == "group":
        hint = "; '!' and '?' mark channels, not groups" if re.search("[!?]", name) else ""
        return f"group name {name!r} must consist of {_ALLOWED}{hint}"
    if name.endswith("?") and _GROUP(name[:-1]):
        return f"channel name {name!r} ends in '?': it is a pattern for new_channel(), not a name"
    return f"channel name {name!r} must consist of {_ALLOWED}, with at most one '?' or '!' inside"
