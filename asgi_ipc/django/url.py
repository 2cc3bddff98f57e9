"""The entry of CHANNEL_LAYERS that a URL describes, for sites that are configured by their
environment. Must not need Django: settings are being read when it is called."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import InvalidOption
from ..options import Options
from ..segment.wanted import Wanted

VARIABLE = "CHANNELS_URL"
_FORM = "ipc://PREFIX?OPTION=VALUE&..."
_UNITS = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def layer_from_url(
    url: str | None = None, backend: str = "asgi_ipc.aio.IPCChannelLayer"
) -> dict[str, Any]:
    """Return the entry of CHANNEL_LAYERS for a URL like ``ipc://mysite?capacity=200``.

    Without `url`, it reads the environment variable CHANNELS_URL. The prefix is where other URLs
    have a host. The query sets options of the layer by their names (`asgi_ipc.options.Options`). In
    values, ``&``, ``#`` and ``%`` are percent-encoded:

    - bytes as a number, or with a unit: ``message_memory=64MiB``; seconds as a number;
    - ``mode`` in octal: ``mode=0660``; ``group`` by its name or gid;
    - ``channel_capacity`` as ``PATTERN:CAPACITY``, once for each pattern, in the order in which
      they are tried. A pattern is a glob, or a regular expression after ``re:``;
    - ``symmetric_encryption_keys`` once for each key: the first one encrypts.

    `backend`: the dotted name of the layer, ``asgi_ipc.IPCChannelLayer`` for Channels 1. Raises
    InvalidOption.
    """
    if url is None:
        url = os.environ.get(VARIABLE, "")
        if not url:
            raise InvalidOption(f"the environment variable {VARIABLE} is not set; it takes {_FORM}")
    config = _config(url)
    # `default` is not imported yet: the function that it names may need the settings.
    checked = {name: value for name, value in config.items() if name not in ("prefix", "default")}
    Wanted.of(Options.read(config["prefix"], checked))
    return {"BACKEND": backend, "CONFIG": config}


def _config(url: str) -> dict[str, Any]:
    if not isinstance(url, str):
        raise InvalidOption(
            f"the URL of the layer must be a str, not {type(url).__name__}: {_FORM}"
        )
    url = url.strip()
    if re.search(r"[\s\x00-\x1f]", url):  # urlsplit would silently drop a line end
        raise InvalidOption(f"the URL of the layer has a space or line end in it: {_FORM}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidOption(f"the URL of the layer cannot be read: {error}") from None
    # Without what may be secret: the query, which may contain keys, and a password.
    shown = re.sub(r"//[^/]*@", "//", re.split("[?#]", url)[0])
    if parts.scheme != "ipc":
        raise InvalidOption(f"the URL of the layer must begin with ipc://, not {shown!r}: {_FORM}")
    if "@" in parts.netloc:
        raise InvalidOption(f"the URL {shown!r} must not have a user or a password: {_FORM}")
    if re.search(":[0-9]*$", parts.netloc):
        raise InvalidOption(f"the URL {shown!r} must not have a port: {_FORM}")
    if not parts.netloc or parts.path not in ("", "/"):
        raise InvalidOption(
            f"the URL {shown!r} must name the prefix where other URLs name a host: {_FORM}"
        )
    if parts.fragment:
        raise InvalidOption(f"the URL {shown!r} has a '#': write it as %23 in a value")
    config: dict[str, Any] = {"prefix": unquote(parts.netloc)}
    for part in filter(None, parts.query.split("&")):
        name, mark, value = part.partition("=")
        name, value = unquote(name), unquote(value)  # a "+" is a "+": keys may have it
        if not mark:
            raise InvalidOption(f"the URL {shown!r} has {name!r} without a value: {_FORM}")
        if name == "channel_capacity":
            pattern, capacity = _capacity(value)
            if pattern in config.setdefault(name, {}):
                raise InvalidOption(f"the URL {shown!r} has channel_capacity twice for one pattern")
            config[name][pattern] = capacity
        elif name == "symmetric_encryption_keys":
            if not value:
                raise InvalidOption(
                    "symmetric_encryption_keys holds an empty key, which everybody knows"
                )
            config.setdefault(name, []).append(value)
        elif name == "prefix":
            raise InvalidOption(f"the URL {shown!r} names the prefix before the '?', not behind it")
        elif name in config:
            raise InvalidOption(f"the URL {shown!r} has {name!r} twice")
        else:
            config[name] = _READ.get(name, _as_it_is)(name, value)
    return config


# -- values ---------------------------------------------------------------------------------------


def _as_it_is(name: str, value: str) -> str:
    return value


def _whole(name: str, value: str) -> int:
    if not re.fullmatch(r"-?[0-9]+", value):
        raise InvalidOption(f"{name} must be a whole number, not {value!r}")
    return int(value)


def _bytes(name: str, value: str) -> int:
    found = re.fullmatch(r"([0-9]+) ?([KMG]iB)?", value, re.IGNORECASE)
    if not found:
        raise InvalidOption(f"{name} must be a number of bytes, or like 64MiB, not {value!r}")
    return int(found[1]) * _UNITS[(found[2] or "").upper()]


def _seconds(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InvalidOption(f"{name} must be a number of seconds, not {value!r}") from None


def _octal(name: str, value: str) -> int:
    if not re.fullmatch(r"(0o)?[0-7]+", value):
        raise InvalidOption(f"{name} must be an octal number such as 0660, not {value!r}")
    return int(value, 8)


def _group(name: str, value: str) -> str | int:
    return int(value) if re.fullmatch(r"[0-9]+", value) else value


def _capacity(value: str) -> tuple[str | re.Pattern[str], int]:
    pattern, mark, capacity = value.rpartition(":")
    if not mark:
        raise InvalidOption(
            f"channel_capacity must be PATTERN:CAPACITY, such as http.response!*:20, not {value!r}"
        )
    number = _whole(f"channel_capacity of {pattern!r}", capacity)
    if not pattern.startswith("re:"):
        return pattern, number
    try:
        return re.compile(pattern[len("re:") :]), number
    except re.error as error:
        raise InvalidOption(
            f"channel_capacity has {pattern!r}, which is no regular expression: {error}"
        ) from None


def _readers() -> dict[str, Callable[[str, str], Any]]:
    """How the value of each option is read, by the type of the option."""
    by_type = {"int": _whole, "float": _seconds}
    found: dict[str, Callable[[str, str], Any]] = {
        field.name: by_type[str(field.type)] for field in fields(Options) if field.type in by_type
    }
    sizes = ("message_memory", "channel_memory", "group_memory", "max_message_size")
    return {**found, **dict.fromkeys(sizes, _bytes), "mode": _octal, "group": _group}


_READ = _readers()
