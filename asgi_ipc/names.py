"""Checks channel and group names by the rules of the contracts, and splits them. Must not know
which channels and groups exist.

Both contracts allow ASCII letters, digits, ``-``, ``_`` and ``.``, and fewer than 100 characters. A
channel name may also contain one ``?`` (single-reader) or one ``!`` (process-specific).
"""

from __future__ import annotations

import re
from typing import Any

from .errors import InvalidName

MAX_NAME = 99  # ASCII characters, and so bytes; asgiref's conformance suite wants under 100

_CHANNEL = re.compile(r"[a-zA-Z0-9._-]+(?:\?[a-zA-Z0-9._-]+|![a-zA-Z0-9._-]*)?").fullmatch
_GROUP = re.compile(r"[a-zA-Z0-9._-]+").fullmatch
_ALLOWED = "ASCII letters, digits, '-', '_' and '.'"


def check_channel(name: Any) -> str:
    """Return `name` if it is a channel name to send to, else raise InvalidName."""
    if issubclass(type(name), str):
        # The methods of a subclass would run under locks.
        text: str = name if type(name) is str else str.__str__(name)
        if len(text) <= MAX_NAME and _CHANNEL(text):
            return text
    raise InvalidName(_complaint("channel", name))


def check_group(name: Any) -> str:
    """Return `name` if it is a group name, else raise InvalidName."""
    if issubclass(type(name), str):
        # The methods of a subclass would run under locks.
        text: str = name if type(name) is str else str.__str__(name)
        if len(text) <= MAX_NAME and _GROUP(text):
            return text
    raise InvalidName(_complaint("group", name))


def check_receive(name: object) -> str:
    """Return `name` if a blocking receive takes it, else raise InvalidName.

    It takes process-specific names only up to the ``!``. The layers also take, in full, those that
    their own ``new_channel()`` made.
    """
    checked = check_channel(name)
    if "!" in checked and not checked.endswith("!"):
        raise InvalidName(
            f"channel {checked!r} is process-specific: name it only up to the '!' "
            f"({checked[: checked.index('!') + 1]!r}) to receive from several channels, or in full "
            "if new_channel() of the same layer made it in this process. The full name comes with "
            "each message"
        )
    return checked


def split(name: str) -> tuple[str, str]:
    """Split a valid channel name into the name of its queue and the local part ("" if none).

    For a process-specific channel the queue's name is the part up to and including ``!``.
    """
    queue, mark, local = name.partition("!")
    return queue + mark, local


def _complaint(kind: str, name: Any) -> str:
    # Not isinstance: lazy strings say of themselves that they are str, and are not.
    if not issubclass(type(name), str):
        return f"a {kind} name must be a str, not {type(name).__name__}: {_shown(name)}"
    if not name:
        return f"a {kind} name must not be empty"
    if len(name) > MAX_NAME:
        return f"{kind} name {name!r} has {len(name)} characters; at most {MAX_NAME} are allowed"
    if kind == "group":
        hint = "; only channel names contain '!' or '?'" if re.search("[!?]", name) else ""
        return f"group name {name!r} must consist of {_ALLOWED}{hint}"
    if name.endswith("?") and _GROUP(name[:-1]):
        return (
            f"channel name {name!r} ends in '?', and needs a unique part after it, such as "
            "secrets.token_hex(8). The blocking layer's new_channel() does that"
        )
    return f"channel name {name!r} must consist of {_ALLOWED}, with at most one '?' or '!' inside"


def _shown(value: object) -> str:
    """The start of what `repr` says of a value, which may fail."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return "which cannot be shown"
