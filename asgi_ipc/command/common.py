"""What the subcommands share: the options that all of them have, errors as exit codes, and how
tables, JSON, sizes and times are printed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.table import Table

from .. import errors
from ..inspection.snapshot import Snapshot
from ..inspection.view import View
from ..segment.paths import prefixes
from .exits import INTERRUPTED, NOT_NOW, UNUSABLE, WRONG_USAGE

Command = TypeVar("Command", bound=Callable[..., Any])

_WIDE = 1000  # columns where nobody looks: a pipe or a file gets its lines whole


def fail(message: str, code: int) -> NoReturn:
    """End the command, with what to tell and an exit code."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


class Commands(click.Group):
    """A group of commands whose errors become exit codes."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except errors.IPCError as error:
            fail(str(error), code_of(error))


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
    """Completes the names of the channels of the layer that --prefix names."""
    try:
        found = Snapshot(View(context.params.get("prefix") or "asgi")).channels()
    except errors.IPCError:
        return []
    return [CompletionItem(c.name) for c in found if c.name.startswith(incomplete)]


def complete_group(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes the names of the groups of the layer that --prefix names."""
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
    help="The layer, by the prefix that its processes give.",
    is_eager=True,  # so that the names of channels can be completed
    shell_complete=_complete_prefix,
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
interval_option = click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Count rates over that long; 0 counts them since the beginning, at once.",
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait that long for the lock of the layer.",
)


def selected(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Those of `names` that match one of the glob `patterns`; all if there are no patterns."""
    if not patterns:
        return set(names)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


# -- output ---------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """One JSON document; dataclasses become objects."""
    click.echo(json.dumps(plain(value), indent=2))


def plain(value: Any) -> Any:
    """`value` with its dataclasses as dicts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def console() -> Console:
    """Where tables are printed: as wide as the terminal, or with whole lines where there is none.

    Colour is left out where there is no terminal, and where NO_COLOR says so.
    """
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> None:
    """A table; the columns whose titles stand in `right` are aligned there."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(titles))
    for title in titles:
        table.add_column(
            title, justify="right" if title in right.split() else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    console().print(table)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def span(seconds: float) -> str:
    """A time span as people read it."""
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
    """The same in six columns at the most."""
    for unit, following, name in ((1, 60, "s"), (60, 3600, "m"), (3600, 172800, "h")):
        if seconds < following:
            return f"{seconds / unit:.1f}{name}"
    return f"{seconds / 86400:.0f}d"


def rate(per_second: float) -> str:
    """A rate as people read it: enough digits for small ones."""
    return f"{per_second:.0f}" if per_second >= 10 or not per_second else f"{per_second:.2g}"


def depth(messages: int, capacity: int) -> str:
    """How many messages wait, of how many that may."""
    return f"{messages}/{capacity or '?'}"
