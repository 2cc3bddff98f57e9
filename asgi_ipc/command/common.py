"""What the subcommands share: their common options, exit codes for errors, and how they print
tables, JSON, sizes and times. Must not know what any of them shows."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NoReturn

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.table import Table

from .. import errors
from ..inspection.snapshot import Snapshot
from ..inspection.view import View
from ..options import Options
from ..segment.paths import prefixes
from ..segment.refusals import reason
from ..statistics import Channel
from .exits import INTERRUPTED, NOT_NOW, UNUSABLE, WRONG_USAGE

_WIDE = 1000  # columns without a terminal: a pipe or a file gets whole lines


def fail(message: str, code: int) -> NoReturn:
    """End the command with an error message and an exit code."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


class Commands(click.Group):
    """A group of commands whose errors become exit codes."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except errors.IPCError as error:
            fail(str(error), code_of(error))
        except OSError as error:
            if (
                error.errno == errno.EPIPE
            ):  # whoever read the output has left: click knows what to do
                raise
            fail(reason(error), UNUSABLE)


def code_of(error: errors.IPCError) -> int:
    """The exit code for an error of the package."""
    if isinstance(error, (errors.ChannelFull, errors.LockTimeout, errors.LimitReached)):
        return NOT_NOW
    if isinstance(error, errors.SegmentError):
        return UNUSABLE
    return WRONG_USAGE


# -- options --------------------------------------------------------------------------------------


def _complete_prefix(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in prefixes() if name.startswith(incomplete)]


def complete_channel(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a channel of the layer that --prefix names."""
    try:
        found = Snapshot(View(context.params.get("prefix") or "asgi")).channels()
    except errors.IPCError:
        return []
    return [CompletionItem(c.name) for c in found if c.name.startswith(incomplete)]


def complete_group(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a group of the layer that --prefix names."""
    try:
        found = Snapshot(View(context.params.get("prefix") or "asgi")).groups()
    except errors.IPCError:
        return []
    return [CompletionItem(group.name) for group in found if group.name.startswith(incomplete)]


prefix_option = click.option(
    "--prefix",
    default="asgi",
    show_default=True,
    envvar="ASGI_IPC_PREFIX",
    show_envvar=True,
    metavar="PREFIX",
    help="The prefix of the layer, as its processes give it.",
    is_eager=True,  # so that names of channels can be completed
    shell_complete=_complete_prefix,
)
group_expiry_option = click.option(
    "--group-expiry",
    type=click.FloatRange(min=0, min_open=True),
    default=Options.group_expiry,
    show_default=True,
    metavar="SECONDS",
    help="The option group_expiry of the layer, a tenth of which is soon for a membership to end.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
interval_option = click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Measure rates over this time; 0 shows those since the beginning, at once.",
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait at most this long for the lock of the layer.",
)


# -- what is shown --------------------------------------------------------------------------------


def two_snapshots(prefix: str, interval: float) -> tuple[Snapshot, Snapshot | None]:
    """A snapshot of now, and one that is `interval` seconds older if that is not 0."""
    view = View(prefix)
    first = Snapshot(view)
    if not interval:
        return first, None
    time.sleep(interval)
    return Snapshot(view), first


def selected(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The `names` that match one of the glob `patterns`; all if there are no patterns."""
    if not patterns:
        return set(names)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


# -- output ---------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """Print one JSON document; dataclasses become objects."""
    click.echo(json.dumps(value, default=dataclasses.asdict, indent=2))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> None:
    """Print a table, as wide as the terminal; without a terminal, its lines are whole.

    The columns whose titles are in `right` are aligned to the right. There is no colour without a
    terminal or with NO_COLOR.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(titles))
    for title in titles:
        table.add_column(
            title, justify="right" if title in right.split() else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    console.print(table)


def span(seconds: float) -> str:
    """A time span as text."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def short_span(seconds: float) -> str:
    """A time span as text of at most six columns."""
    for unit, following, name in ((1, 60, "s"), (60, 3600, "m"), (3600, 172800, "h")):
        if seconds < following:
            return f"{seconds / unit:.1f}{name}"
    return f"{seconds / 86400:.0f}d"


def rate(per_second: float) -> str:
    """A rate as text, with more digits if it is small."""
    return f"{per_second:.0f}" if per_second >= 10 or not per_second else f"{per_second:.2g}"


def pending(channel: Channel) -> str:
    """The pending messages of a channel, and its capacity."""
    return f"{channel.pending}/{channel.capacity or '?'}"


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
