"""Starts a worker by the name of its application, for command lines. Must not need click or rich:
the command ``asgi-ipc wsgi-worker`` uses these, and calls `serve`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidOption, IPCError
from ..sync import IPCChannelLayer
from .worker import AsgiToWsgiWorker


def serve(
    application: str,
    *,
    prefix: str | None = None,
    layer: str | None = None,
    threads: int = 1,
    timeout: float = 60,
) -> None:
    """Run a worker until SIGTERM or SIGINT.

    `application` and `layer` are each ``module:name``, looked up in the current folder first. The
    name of the application may be omitted if it is ``application``. Without `layer`, the worker
    uses a layer with default options and `prefix` (default "asgi"). `threads` and `timeout`
    (seconds) are those of `AsgiToWsgiWorker`. Logs to stderr, unless logging is already configured.
    Raises InvalidOption.
    """
    if prefix is not None and layer is not None:
        raise InvalidOption("give a prefix or a layer, not both: the layer has a prefix")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    channel_layer = IPCChannelLayer(prefix or "asgi") if layer is None else load(layer)
    if ":" not in application:
        application += ":application"
    AsgiToWsgiWorker(channel_layer, load(application), threads, timeout).run()


def load(name: str) -> Any:
    """Return the object that ``module:name`` names. Raises InvalidOption if there is none."""
    module, mark, path = name.partition(":")
    if not (module and mark and path):
        raise InvalidOption(f"{name!r} must be module:name, as in mysite.wsgi:application")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only if this module itself is missing, and not one that it imports.
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise InvalidOption(
                f"there is no module {error.name!r} in {os.getcwd()} or on sys.path"
            ) from None
        raise
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InvalidOption(f"module {module!r} has no {path!r}") from None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of ``python -m asgi_ipc.wsgi``, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m asgi_ipc.wsgi",
        description="Answer HTTP requests from a channel layer with a WSGI application.",
    )
    parser.add_argument("application", help="module:name, as in mysite.wsgi:application")
    parser.add_argument("--prefix", help='prefix of the layer (default: "asgi")')
    parser.add_argument(
        "--layer", help="module:name of an IPCChannelLayer, for other options than the default ones"
    )
    parser.add_argument("--threads", type=int, default=1, help="requests at a time (default: 1)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60,
        help="seconds that a client may neither send nor take data (default: 60)",
    )
    given = parser.parse_args(arguments)
    try:
        serve(**vars(given))
    except (InvalidOption, IPCError) as error:
        parser.error(str(error))
    return 0
