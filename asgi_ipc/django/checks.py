"""System checks that compare CHANNEL_LAYERS with the machine and with the live segment. Must not
change or create anything.

A live segment is one to which processes are attached. A segment without processes does not matter:
the next process replaces it with one that fits its settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from .. import IPCChannelLayer
from ..aio import IPCChannelLayer as AsyncIPCChannelLayer
from ..attachment.process import attached_processes
from ..errors import IncompatibleSegment, InvalidOption, IPCError, NoSuchLayer
from ..inspection.view import View
from ..machines.base import LocalAndRemote
from ..options import Options
from ..segment.paths import SHM, Paths, full_prefix
from ..segment.wanted import Wanted
from ..store.layout import WORD, Layout

_LAYERS = (IPCChannelLayer, AsyncIPCChannelLayer, LocalAndRemote)
_SIZES = ("message_memory", "group_memory", "max_message_size")
_DEFAULT = Options().prefix


def check_channel_layers(app_configs: object, **kwargs: object) -> list[CheckMessage]:
    """Check every layer of this package in CHANNEL_LAYERS, as Django calls it."""
    found: list[CheckMessage] = []
    for alias, described in (getattr(settings, "CHANNEL_LAYERS", None) or {}).items():
        try:
            backend = import_string(described["BACKEND"])
        except (ImportError, KeyError, TypeError):
            continue  # Channels itself reports that
        if isinstance(backend, type) and issubclass(backend, _LAYERS):
            where = f"CHANNEL_LAYERS[{alias!r}]"
            found += _check(where, backend, dict(described.get("CONFIG") or {}))
    return found


def _check(where: str, backend: type, config: dict[str, Any]) -> Iterator[CheckMessage]:
    try:
        backend(**config)  # which touches neither memory nor servers
    except (InvalidOption, TypeError) as error:
        yield Error(f"{where}: {error}", id="asgi_ipc.E001")
        return
    if issubclass(backend, LocalAndRemote):
        config = dict(config.get("local") or {})
    options = Options.read(config.pop("prefix", _DEFAULT), config)
    if options.prefix == _DEFAULT:
        yield Warning(
            f"{where}: the prefix is {_DEFAULT!r}, the default. Every program of this user with "
            "that prefix shares the channels: two sites take each other's messages.",
            hint='Name the site: "CONFIG": {"prefix": "mysite"}.',
            id="asgi_ipc.W003",
        )
    if options.mode != 0o600 and options.group is None:
        yield Warning(
            f"{where}: mode={options.mode:#o} without group. The layer then belongs to the "
            "effective group of the first process, and users who are not in that group are "
            "refused.",
            hint='Name the group: "CONFIG": {..., "mode": 0o660, "group": "mysite"}.',
            id="asgi_ipc.W004",
        )
    yield from _room(where, options, Wanted.of(options).layout())
    yield from _live(where, options, Paths(full_prefix(options.prefix)))


def _room(where: str, options: Options, layout: Layout) -> Iterator[CheckMessage]:
    """Check that the machine has as much shared memory as the limits allow."""
    try:
        status = os.statvfs(SHM)
    except OSError:
        return  # macOS
    size, needed = status.f_blocks * status.f_frsize, (layout.log_end - layout.log) * WORD
    if size < needed:
        yield Warning(
            f"{where}: message_memory={options.message_memory} can use up to {needed >> 20} MiB of "
            f"shared memory, but {SHM} has only {size >> 20} MiB. When these are used up, send "
            "raises ChannelFull.",
            hint=f"Make {SHM} larger (docker run --shm-size=256m), or message_memory smaller.",
            id="asgi_ipc.W001",
        )


def _live(where: str, options: Options, paths: Paths) -> Iterator[CheckMessage]:
    """Check that the segment of running processes agrees with the settings."""
    try:
        if not attached_processes(paths.members):
            return
        live = View(options.prefix).options()
    except (NoSuchLayer, FileNotFoundError):
        return
    except IncompatibleSegment as error:
        yield Error(
            f"{where}: {error}.",
            hint="Stop all processes of the site before you start another version.",
            id="asgi_ipc.E002",
        )
        return
    except (IPCError, OSError) as error:
        yield Error(f"{where}: {error}.", id="asgi_ipc.E003")
        return
    if live["lock"] != options.lock:
        yield Error(
            f"{where}: the live segment uses lock={live['lock']!r}, but the settings say "
            f"{options.lock!r}. A process with these settings cannot attach.",
            hint="Use the same lock in all processes, or stop those that run.",
            id="asgi_ipc.E004",
        )
    other = [
        f"{name} {live[name]} (settings: {getattr(options, name)})"
        for name in _SIZES
        if live[name] != getattr(options, name)
    ]
    if other:
        yield Warning(
            f"{where}: the live segment has {', '.join(other)}. All processes use its sizes.",
            hint="To change the sizes, stop all processes of the prefix at the same time.",
            id="asgi_ipc.W002",
        )
