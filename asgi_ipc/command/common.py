"""What the subcommands share: their common options, exit codes for errors, and how they print
tables, JSON, sizes and times. Must not know what any of them shows."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from typing import NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem

from .. import errors
from ..inspection.snapshot import Snapshot
from ..inspection.view import View
from ..options import Options
from ..segment.paths import prefixes
from ..segment.refusals import reason
from ..statistics import Channel
from .exits import INTERRUPTED, NOT_NOW, UNUSABLE, WRONG_USAGE
from .subcommands import SUBCOMMANDS

_USUAL, _LEAST = 80, 20  # columns of a terminal
_GAP = 2  # columns between two columns of a table
_NOTHING = ("0", "-")  # a column of a table with only these says nothing


def fail(message: str, code: int) -> NoReturn:
    """End the command with an error message and an exit code."""
    say(f"Error: {message}", err=True)
    sys.exit(code)


class Commands(click.Group):
    """The subcommands, each imported when it is asked for; their errors become exit codes."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for section in SUBCOMMANDS.values() for name in section]

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if name.startswith("-") or self.get_command(context, name) is not None:
            return super().resolve_command(context, arguments)
        near = get_close_matches(name, self.list_commands(context))
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the commands."
        raise click.UsageError(f"There is no command {name!r}: {hint}", context)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for section in SUBCOMMANDS.values():
            if name in section:
                place, _, attribute = section[name].place.partition(":")
                found: click.Command = getattr(import_module(f"{__package__}.{place}"), attribute)
                return found
        return None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, as they are sorted in `subcommands`."""
        for title, section in SUBCOMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, one.about) for name, one in section.items()])

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except click.UsageError as error:  # click itself would print it in one long line
            where = error.ctx or context
            usage = f"{where.get_usage()}\nTry '{where.command_path} --help' for help.\n"
            click.echo(usage, err=True)
            fail(error.format_message(), error.exit_code)
        except errors.IPCError as error:
            fail(str(error), code_of(error))
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of the output has left: click ends quietly
                raise
            if isinstance(error, _OutputError):
                fail(f"the output cannot be written: {error.strerror}", UNUSABLE)
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
    help="The prefix of the layer.",
    is_eager=True,  # so that names of channels can be completed
    shell_complete=_complete_prefix,
)
group_expiry_option = click.option(
    "--group-expiry",
    type=click.FloatRange(min=0, min_open=True),
    default=Options.group_expiry,
    show_default=True,
    metavar="SECONDS",
    help="The option group_expiry of the layer. Report memberships that end within a tenth of it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
wide_option = click.option(
    "--wide",
    is_flag=True,
    help="Show whole names and all columns, even beyond the width.",
)
interval_option = click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Measure rates over this time; 0 shows the rates since the creation, at once.",
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


def none(kind: str, patterns: Sequence[str]) -> str:
    """What to say where there is nothing of a `kind`, or nothing that matches."""
    return f"No {kind} matches {' or '.join(patterns)}." if patterns else f"There are no {kind}s."


# -- output ---------------------------------------------------------------------------------------


class _OutputError(OSError):
    """Standard output or standard error cannot be written, because a disk is full, say."""


def write(text: str, err: bool = False) -> None:
    """Print a text as it is. All output goes through here."""
    try:
        click.echo(text, err=err)
    except OSError as error:
        raise error if error.errno == errno.EPIPE else _OutputError(*error.args) from None


def print_json(value: object) -> None:
    """Print one JSON document. Dataclasses become objects; what is no number in JSON, null."""
    write(json.dumps(_json_value(value), indent=2, allow_nan=False))


def _json_value(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _json_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def room(err: bool = False) -> int | None:
    """The columns of the terminal; None if the output goes to a pipe or a file, whose lines are
    whole."""
    stream = sys.stderr if err else sys.stdout
    if stream is None or not stream.isatty():  # None: the caller has closed it
        return None
    given = os.environ.get("COLUMNS", "")
    columns = int(given) if given.isdigit() else os.get_terminal_size(stream.fileno()).columns
    return max(columns or _USUAL, _LEAST)


def say(text: str, err: bool = False, indent: str = "", shorten: bool = False) -> None:
    """Print a text. A terminal gets it in lines that end between words; the second and later ones
    begin with `indent`. With `shorten`, words that are longer than a line are cut in their middle;
    without it they stay whole, to be copied."""
    columns = room(err)
    if columns is not None:
        if shorten:
            longest = columns - len(indent)
            text = re.sub(r"\S+", lambda word: cut(word[0], longest), text)
        text = "\n".join(
            textwrap.fill(
                line,
                columns,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for line in text.splitlines()
        )
    write(text, err)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print labels with their values: beside them, or in a narrow terminal below them."""
    width = max(len(label) for label, _ in pairs) + _GAP
    columns = room()
    below = columns is not None and columns < 2 * width
    for label, value in pairs:
        if below:
            say(f"{label}\n  {value}", indent="  ")
        else:
            say(f"{label:{width}}{value}", indent=" " * width)


class Column(NamedTuple):
    """A column of a table."""

    title: str
    right: bool = False  # whether it is aligned to the right
    # Where the table is wider than the terminal:
    least: int = 0  # columns to which its cells may be cut; 0: they may not
    # It is left out before columns with a smaller number. Those with 0 follow, the last one first;
    # the first column of a table always stays.
    spare: int = 0


def print_table(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], wide: bool = False
) -> None:
    """Print a table. One that is wider than the terminal is made to fit, unless it is `wide`: cells
    are cut, and columns left out, those that say nothing first. Text is measured as a terminal
    shows it: many East Asian characters take two columns."""
    cells = [list(row) for row in rows]
    widths = [
        max([len(column.title), *(breadth(row[i]) for row in cells)])
        for i, column in enumerate(columns)
    ]
    most = None if wide else room()
    shown = list(range(len(columns)))
    if most is not None:
        shown = _fit(columns, cells, widths, most)
    titles = [column.title for column in columns]
    lines = []
    for row in [titles, *cells]:
        line = []
        for i in shown:
            cell = cut(row[i], widths[i])
            space = " " * (widths[i] - breadth(cell))
            line.append(space + cell if columns[i].right else cell + space)
        lines.append((" " * _GAP).join(line).rstrip())
    if os.environ.get("TERM") != "dumb":
        lines[0] = click.style(lines[0], bold=True)
    write("\n".join(lines))
    left_out = [title for i, title in enumerate(titles) if i not in shown]
    if left_out:
        say(f"Not shown: {', '.join(left_out)}. --wide shows all.", err=True)


def _fit(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], widths: list[int], most: int
) -> list[int]:
    """Make the `widths` fit into `most` columns. Returns the indexes of what is shown."""
    shown = list(range(len(columns)))
    least = [min(column.least or width, width) for column, width in zip(columns, widths)]

    def missing() -> int:
        return sum(least[i] + _GAP for i in shown) - _GAP - most

    silent = {i for i in shown if columns[i].spare and all(row[i] in _NOTHING for row in cells)}
    for i in sorted(shown[1:], key=lambda i: (i not in silent, -columns[i].spare, -i)):
        if missing() > 0:
            shown.remove(i)
    if missing() > 0:
        least[0] = widths[0] = min(widths[0], most)
    over = max(-missing(), 0)
    cuttable = sorted((i for i in shown if least[i] < widths[i]), key=lambda i: widths[i])
    for place, i in enumerate(cuttable):
        more = min(widths[i] - least[i], over // (len(cuttable) - place))
        widths[i] = least[i] + more
        over -= more
    return shown


def cut(text: str, width: int) -> str:
    """`text` cut to `width` columns, in its middle: the ends of a name tell more."""
    if breadth(text) <= width:
        return text
    half = (width - 1) // 2
    return _start(text, width - 1 - half) + "…" + _start(text[::-1], half)[::-1]


def breadth(text: str) -> int:
    """The columns that a terminal needs for `text`."""
    return len(text) if text.isascii() else sum(map(_breadth, text))


def _breadth(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _start(text: str, width: int) -> str:
    """As much of the start of `text` as `width` columns hold."""
    for end, character in enumerate(text):
        width -= _breadth(character)
        if width < 0:
            return text[:end]
    return text


def counted(count: int, one: str, several: str = "") -> str:
    """A count of things as text: "1 message", "2 messages", "no message"."""
    return f"{count or 'no'} {one if count < 2 else several or one + 's'}"


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
    """A rate as text of at most five columns, with more digits if it is small."""
    if 0 < per_second < 0.01:
        return "<0.01"
    if per_second >= 99_999.5:
        return f"{per_second / 1000:.0f}k"
    return f"{per_second:.0f}" if per_second >= 10 or not per_second else f"{per_second:.2g}"


def waiting(count: int, oldest: float) -> str:
    """How many messages wait, and the age of the oldest one, as text."""
    if not count:
        return "no message waits"
    return f"{counted(count, 'message')}, the oldest for {span(oldest)}"


def pending(channel: Channel) -> str:
    """The pending messages of a channel, and its capacity."""
    return f"{channel.pending}/{channel.capacity or '?'}"


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
