"""The command as such. Its subcommands are imported when they are asked for: see `subcommands`."""

from __future__ import annotations

import click

from .. import __version__
from .common import Commands
from .subcommands import ABOUT, EXIT_STATUS


@click.group(
    cls=Commands,
    help=f"{ABOUT}\n{EXIT_STATUS}",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="asgi-ipc")
def cli() -> None:
    """The group of all subcommands."""
