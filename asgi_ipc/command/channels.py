"""``channels``: the channels of a layer."""

from __future__ import annotations

from collections.abc import Callable

import click

from ..statistics import Channel
from .common import (
    Column,
    complete_channel,
    first_few,
    interval_option,
    json_option,
    none,
    pending,
    prefix_option,
    print_json,
    print_table,
    rate,
    room,
    say,
    selected,
    short_span,
    two_snapshots,
    wide_option,
)

_SCREENFUL = 100  # channels that a terminal gets, if nothing else is asked for

# By what the channels are sorted; they come in the order of their names.
_ORDERS: dict[str, Callable[[Channel], tuple[float, ...]]] = {
    "rate": lambda channel: (-channel.sent_rate - channel.left_rate, -channel.pending),
    "pending": lambda channel: (-channel.pending,),
    "fill": lambda channel: (-channel.fill,),
    "oldest": lambda channel: (-channel.oldest,),
    "refused": lambda channel: (-channel.refused,),
    "name": lambda channel: (),
}


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, shell_complete=complete_channel)
@prefix_option
@interval_option
@click.option(
    "--sort",
    type=click.Choice(list(_ORDERS)),
    default="rate",
    show_default=True,
    help="Sort by this; by rate, the busiest come first, then those with the most messages.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Show the first N; 0 for all. Default: {_SCREENFUL} in a terminal, else all.",
)
@wide_option
@json_option
def channels(
    patterns: tuple[str, ...],
    prefix: str,
    interval: float,
    sort: str,
    limit: int | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Show all channels, or those whose names match a PATTERN (a glob).

    PENDING is the number of messages that wait, and the capacity, which is "?" before the first
    send. READERS are the processes that wait for a message at this instant; "owner" is the process
    to which a process-specific channel belongs. The process-specific channels of a process are
    counted together, up to the "!".
    """
    now, before = two_snapshots(prefix, interval)
    found = now.channels(before)
    names = selected([channel.name for channel in found], patterns)
    found = [channel for channel in found if channel.name in names]
    found.sort(key=_ORDERS[sort])
    if limit is None:
        limit = 0 if as_json or room() is None else _SCREENFUL
    shown = found[:limit] if limit else found
    if as_json:
        print_json(shown)
        return
    if not found:
        say(none("channel", patterns))
        return
    print_table(
        [
            Column("CHANNEL", least=27),
            Column("PENDING", right=True),
            Column("OLDEST", right=True),
            Column("IN/S", right=True),
            Column("OUT/S", right=True, spare=1),
            Column("SENT", right=True, spare=4),
            Column("REFUSED", right=True, spare=2),
            Column("DROPPED", right=True, spare=3),
            Column("READERS", least=12),
        ],
        [
            [
                channel.name,
                pending(channel),
                short_span(channel.oldest) if channel.pending else "-",
                rate(channel.sent_rate),
                rate(channel.left_rate),
                str(channel.sent),
                str(channel.refused),
                str(sum(channel.dropped.values())),
                _readers(channel),
            ]
            for channel in shown
        ],
        wide,
    )
    if len(found) > len(shown):
        say(f"{len(found) - len(shown)} more: --limit 0 shows all.", err=True)


def _readers(channel: Channel) -> str:
    """The known readers of a channel."""
    known = [str(pid) for pid in channel.waiting if pid != channel.owner]
    if channel.owner:
        known.insert(0, f"owner {channel.owner}")
    return first_few(known) or "-"
