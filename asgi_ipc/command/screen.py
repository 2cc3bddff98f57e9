"""The live screen of ``top``. Only ``top`` may import it, and only when it runs: nothing else needs
textual."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Union

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Input, Static

from ..errors import IPCError
from ..inspection.snapshot import Snapshot
from ..inspection.view import View
from ..options import Options
from ..statistics import Channel, Ending, Stats, size
from .common import cut, pending, rate, selected, short_span, span

Cell = Union[str, Text]

_MOST = 500  # rows of a table
_BAR = 10  # columns
_LOOK_EVERY = 10.0  # seconds between two looks at all memberships
_NEARLY = 0.8  # fill from which a channel is yellow

# The orders of the channels: the name that is shown, and the sort key.
_ORDERS: list[tuple[str, Callable[[Channel], tuple[float, ...]]]] = [
    ("rate", lambda channel: (-channel.sent_rate - channel.left_rate, -channel.pending)),
    ("fill", lambda channel: (-channel.fill, -channel.pending)),
    ("oldest", lambda channel: (-channel.oldest,)),
    ("refused", lambda channel: (-channel.refused,)),
    ("name", lambda channel: ()),
]


class Top(App[None]):
    """The screen. It reads a snapshot at each interval, and disturbs no process."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { height: 4; padding: 0 1; }
    #channels { height: 2fr; scrollbar-size-vertical: 1; }
    #processes { height: 1fr; min-height: 5; max-height: 12; scrollbar-size-vertical: 1; }
    #filter { height: 1; border: none; padding: 0 1; display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort(1)", "Sort"),
        Binding("S", "sort(-1)", "Sort back", show=False),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "no_filter", "No filter"),
        Binding("p", "pause", "Pause"),
    ]

    def __init__(
        self, prefix: str, interval: float, group_expiry: float = Options.group_expiry
    ) -> None:
        super().__init__()
        self.title = "asgi-ipc top"
        self.prefix = prefix
        self.interval = interval
        self.order = 0
        self.pattern = ""
        self.paused = False
        self.looks = 0  # snapshots taken so far
        self._view: View | None = None
        self._before: Snapshot | None = None  # where the shown rates start
        self._now: Snapshot | None = None
        self._problem = ""
        self._group_expiry = group_expiry
        self._ending: list[Ending] = []  # memberships, as of the last look
        self._looked = -_LOOK_EVERY

    def compose(self) -> ComposeResult:
        yield Static(id="summary")
        yield DataTable(id="channels", cursor_type="none", cell_padding=0)
        yield DataTable(id="processes", cursor_type="none", cell_padding=0)
        yield Input(placeholder="channels whose names contain this, or a glob", id="filter")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#channels").focus()
        self.read()
        self.set_interval(self.interval, self.tick)

    def on_resize(self) -> None:
        self.show()

    # -- keys -------------------------------------------------------------------------------------

    def action_sort(self, step: int) -> None:
        self.order = (self.order + step) % len(_ORDERS)
        self.show()

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        self.screen.set_focus(field)

    def action_no_filter(self) -> None:
        self.query_one("#filter", Input).value = ""
        self._leave_filter()

    def action_pause(self) -> None:
        self.paused = not self.paused
        self.show()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.pattern = event.value
        self.show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._leave_filter()

    def _leave_filter(self) -> None:
        self.query_one("#filter").display = False
        self.screen.set_focus(self.query_one("#channels"))
        self.show()

    # -- what is shown ----------------------------------------------------------------------------

    def tick(self) -> None:
        if not self.paused:
            self.read()

    def read(self) -> None:
        """Take a snapshot. If the layer is gone, look for it again each time."""
        try:
            self._view = self._view or View(self.prefix)
            snapshot = Snapshot(self._view)
            if not self._looked <= snapshot.now < self._looked + _LOOK_EVERY:
                self._ending = snapshot.ending(self._group_expiry)
                self._looked = snapshot.now
        except (IPCError, OSError) as error:
            self._view = self._before = self._now = None
            self._problem = str(error)
            self._looked = -_LOOK_EVERY
        else:
            self._problem = ""
            self._before, self._now = self._now, snapshot
            self.looks += 1
        self.show()

    def show(self) -> None:
        """Draw the last snapshot."""
        summary = self.query_one("#summary", Static)
        channels = self.query_one("#channels", DataTable)
        processes = self.query_one("#processes", DataTable)
        if self._now is None:
            summary.update(Text(f"prefix {self.prefix}: {self._problem}"))
            channels.clear(columns=True)
            processes.clear(columns=True)
            return
        before = self._before
        stats = self._now.stats(None if before is None else before.totals())
        summary.styles.height = 5 if self._ending else 4
        summary.update(self._summary(stats))
        found = self._now.channels(before)
        wanted = self.pattern if set(self.pattern) & set("*?[") else f"*{self.pattern}*"
        names = selected([channel.name for channel in found], [wanted])
        found = [channel for channel in found if channel.name in names]
        found.sort(key=_ORDERS[self.order][1])
        self._fill(
            channels,
            [("CHANNEL", 0), ("FILL", 11), (">PENDING", 9), (">OLDEST", 7), (">IN/S", 6)]
            + [(">OUT/S", 6), (">REFUSED", 8), ("READERS", 8)],
            [_channel_row(channel) for channel in found[:_MOST]],
        )
        self._fill(
            processes,
            [("PID", 8), ("STATE", 9), (">ATTACHED", 9), ("WAITS FOR", 26), ("COMMAND", 0)],
            [
                [
                    str(process.pid),
                    process.state + ("*" if process.holds_lock else ""),
                    short_span(process.attached),
                    ", ".join(process.waiting) or "-",
                    process.command or "?",
                ]
                for process in self._now.processes()[:_MOST]
            ],
        )

    def _summary(self, stats: Stats) -> Text:
        memory, rates = stats.memory, stats.rates
        dropped = ", ".join(f"{reason} {n}" for reason, n in stats.dropped.items() if n)
        state = [f"sorted by {_ORDERS[self.order][0]}"]
        if self.pattern:
            state.append(f"filter {self.pattern!r}")
        if self.paused:
            state.append("PAUSED")
        lines: tuple[str, ...] = (
            f"prefix {stats.prefix}   {', '.join(state)}",
            f"pending {stats.pending}, oldest {span(stats.oldest)}   in {rate(rates.sent)}/s   "
            f"out {rate(rates.left)}/s   refused {rate(rates.refused)}/s",
            f"memory {size(memory.in_use)} of {size(memory.limit)}, reserved "
            f"{size(memory.reserved)}   channels {stats.channels}   groups {stats.groups}",
            f"dropped {sum(stats.dropped.values())}"
            + (f" ({dropped})" if dropped else "")
            + (f"   abandoned {stats.abandoned}" if stats.abandoned else "")
            + f"   lock waits {stats.lock.waits}   processes {stats.processes}",
        )
        if self._ending:
            first, *others = self._ending
            more = f" and {len(others)} more" if others else ""
            lines += (
                f"ends in {short_span(first.expires)} unless renewed: "
                f"{cut(first.channel, 20)} of group {cut(first.group, 12)}{more}",
            )
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        text.highlight_words([stats.prefix, "PAUSED"], "bold")
        return text

    def _fill(
        self, table: DataTable[Cell], columns: list[tuple[str, int]], rows: list[list[Cell]]
    ) -> None:
        """Fill a table. The column of width 0 gets the remaining width; ">" aligns right."""
        scrolled = table.scroll_y
        left = max(self.size.width - sum(width for _, width in columns) - 1, 12)
        table.clear(columns=True)
        for title, width in columns:
            table.add_column(_cell(title.lstrip(">"), title, width or left), width=width or left)
        for row in rows:
            table.add_row(
                *(_cell(cell, title, width or left) for cell, (title, width) in zip(row, columns))
            )
        table.scroll_to(y=scrolled, animate=False)


def _channel_row(channel: Channel) -> list[Cell]:
    readers = [channel.owner] if channel.owner else list(channel.waiting)
    return [
        channel.name,
        _bar(channel),
        pending(channel),
        short_span(channel.oldest) if channel.pending else "-",
        rate(channel.sent_rate),
        rate(channel.left_rate),
        str(channel.refused),
        str(readers[0]) + ("+" if len(readers) > 1 else "") if readers else "-",
    ]


def _bar(channel: Channel) -> Text:
    """How full a channel is. A channel that is not empty gets at least one mark."""
    marks = max(int(channel.fill * _BAR), 1 if channel.pending else 0)
    colour = "red" if channel.fill >= 1 else "yellow" if channel.fill >= _NEARLY else "green"
    return Text.assemble(("█" * marks, colour), ("░" * (_BAR - marks), "dim"))


def _cell(value: Cell, title: str, width: int) -> Cell:
    """A value in a column, with a space after it."""
    if not isinstance(value, str):
        return value
    text = cut(value, width - 1)
    return f"{text:>{width - 1}} " if title.startswith(">") else text
