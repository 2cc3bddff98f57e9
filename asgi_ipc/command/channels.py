"""``channels``: the channels of a layer."""

from __future__ import annotations

from collections.abc import Callable

import click

from ..statistics import Channel
from .common import (
    complete_channel,
    interval_option,
    json_option,
    pending,
    prefix_option,
    print_json,
    print_table,
    rate,
    selected,
    span,
    two_snapshots,
)

_ORDERS: dict[str, Callable[[Channel], tuple[float | str, ...]]] = {
    "name": lambda channel: (channel.name,),
    "pending": lambda channel: (-channel.pending, channel.name),
    "fill": lambda channel: (-channel.fill, channel.name),
    "oldest": lambda channel: (-channel.oldest, channel.name),
    "rate": lambda channel: (-channel.sent_rate, channel.name),
    "refused": lambda channel: (-channel.refused, channel.name),
}


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, shell_complete=complete_channel)
@prefix_option
@interval_option
@click.option(
    "--sort",
    type=click.Choice(list(_ORDERS)),
    default="name",
    show_default=True,
    help="Sort by this.",
)
@json_option
def channels(
    patterns: tuple[str, ...], prefix: str, interval: float, sort: str, as_json: bool
) -> None:
    """Show all channels, or those whose names match a PATTERN (a glob).

    PENDING is the number of messages that wait, and the capacity; "?" until a process has sent.
    READERS are the processes that wait for a message at this instant; "owner" is the process that a
    process-specific channel belongs to. Process-specific channels are counted up to the "!".
    """
    now, before = two_snapshots(prefix, interval)
    found = now.channels(before)
    names = selected([channel.name for channel in found], patterns)
    found = [channel for channel in found if channel.name in names]
    found.sort(key=_ORDERS[sort])
    if as_json:
        print_json(found)
        return
    print_table(
        ["CHANNEL", "PENDING", "OLDEST", "IN/S", "OUT/S", "SENT", "REFUSED", "DROPPED", "READERS"],
        [
            [
                channel.name,
                pending(channel),
                span(channel.oldest) if channel.pending else "-",
                rate(channel.sent_rate),
                rate(channel.left_rate),
                str(channel.sent),
                str(channel.refused),
                str(sum(channel.dropped.values())),
                _readers(channel),
            ]
            for channel in found
        ],
        right="PENDING OLDEST IN/S OUT/S SENT REFUSED DROPPED",
    )


def _readers(channel: Channel) -> str:
    """The known readers of a channel."""
    known = [str(pid) for pid in channel.waiting if pid != channel.owner]
    if channel.owner:
        known.insert(0, f"owner {channel.owner}")
    return ", ".join(known) or "-"
