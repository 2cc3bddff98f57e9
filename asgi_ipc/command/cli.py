"""The list of subcommands."""

from __future__ import annotations

import click

from .. import __version__
from .bench import bench
from .channels import channels
from .common import Commands
from .destroy import destroy
from .doctor import doctor
from .export import export
from .flush import flush
from .groups import groups
from .list import list_layers
from .messages import group_send, receive, send
from .processes import processes
from .stats import stats
from .tail import tail
from .top import top
from .verify import verify
from .wsgi_worker import wsgi_worker


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="asgi-ipc")
def cli() -> None:
    """Look into the channel layers of this machine, and operate them.

    A layer is named by its prefix. Looking takes no lock and disturbs no process.

    Exit status: 0 success; 1 the answer is no, or nothing came; 2 wrong usage; 3 there is no such
    layer, or it cannot be opened from here; 4 full, busy or in use: try again.
    """


for command in (
    list_layers,
    stats,
    channels,
    groups,
    processes,
    top,
    tail,
    send,
    receive,
    group_send,
    verify,
    flush,
    destroy,
    doctor,
    bench,
    export,
    wsgi_worker,
):
    cli.add_command(command)
