"""``top``: a live screen of one layer."""

from __future__ import annotations

import sys

import click

from ..inspection.view import View
from .common import fail, group_expiry_option, prefix_option
from .exits import UNUSABLE, WRONG_USAGE


@click.command()
@prefix_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Refresh this often.",
)
@group_expiry_option
def top(prefix: str, interval: float, group_expiry: float) -> None:
    """Watch a layer on a live screen: its busiest channels, its processes, and memberships that end
    soon because nobody renews them.

    Keys: s sorts by the next figure (rate, fill, oldest, refused, name), / filters the channels,
    Escape removes the filter, p pauses, q quits. NO_COLOR=1 turns colour off.
    """
    # textual draws on standard error.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        fail("top needs a terminal; in scripts, use stats or channels", WRONG_USAGE)
    try:
        from .screen import Top
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "textual":
            raise
        fail("top needs textual, which is not installed: pip install 'asgi_ipc[cli]'", UNUSABLE)
    View(prefix)  # if it fails, its error lists the layers that exist
    Top(prefix, interval, group_expiry).run()
