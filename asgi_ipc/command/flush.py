"""``flush``: forget what is in a layer."""

from __future__ import annotations

import click

from .. import IPCChannelLayer
from ..inspection.view import View
from .common import prefix_option, timeout_option, write


@click.command()
@prefix_option
@timeout_option
def flush(prefix: str, timeout: float) -> None:
    """Delete all messages and groups of a layer.

    Its processes continue, and wait for new messages. This also repairs a damaged layer.
    """
    IPCChannelLayer(prefix, **View(prefix).options(), lock_timeout=timeout).flush()
    write(f"Flushed prefix {prefix!r}.")
