"""``list``, ``stats``, ``channels``, ``groups`` and ``processes``: a look at what is there."""

from __future__ import annotations

import time

import click

from ..inspection.snapshot import Snapshot, layers
from ..inspection.view import View
from ..segment.procfs import user_name
from ..statistics import Channel, Stats
from .common import (
    complete_channel,
    complete_group,
    depth,
    interval_option,
    json_option,
    prefix_option,
    print_json,
    print_table,
    rate,
    selected,
    size,
    span,
)

_ORDERS = {
    "name": lambda channel: (channel.name,),
    "messages": lambda channel: (-channel.messages, channel.name),
    "fill": lambda channel: (-channel.fill, channel.name),
    "oldest": lambda channel: (-channel.oldest, channel.name),
    "rate": lambda channel: (-channel.sent_rate, channel.name),
    "refused": lambda channel: (-channel.refused, channel.name),
}


@click.command("list")
@json_option
def list_layers(as_json: bool) -> None:
    """List the layers on this machine, whoever owns them.

    IN_USE is what messages take, RESERVED what a layer has taken from the machine, SIZE what it
    could take at the most.
    """
    found = layers()
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("There are no layers on this machine.")
        return
    print_table(
        [
            "PREFIX",
            "VERSION",
            "OWNER",
            "MODE",
            "IN_USE",
            "RESERVED",
            "SIZE",
            "MESSAGES",
            "PROCESSES",
        ],
        [
            [
                layer.prefix,
                str(layer.layout_version or "?"),
                layer.owner,
                f"{layer.mode:04o}",
                "?" if layer.problem else size(layer.in_use),
                size(layer.reserved),
                size(layer.size),
                "?" if layer.problem else str(layer.messages),
                str(layer.processes),
            ]
            for layer in found
        ],
        right="VERSION IN_USE RESERVED SIZE MESSAGES PROCESSES",
    )
    for layer in found:
        if layer.problem:
            click.echo(f"{layer.prefix}: {layer.problem}", err=True)


def two_snapshots(prefix: str, interval: float) -> tuple[Snapshot, Snapshot | None]:
    """The newest snapshot, and one that is `interval` seconds older, if there is to be one."""
    view = View(prefix)
    first = Snapshot(view)
    if not interval:
        return first, None
    time.sleep(interval)
    return Snapshot(view), first


@click.command()
@prefix_option
@interval_option
@json_option
def stats(prefix: str, interval: float, as_json: bool) -> None:
    """Show the figures of a layer as a whole.

    Counts begin with the creation of the layer or with its last flush.
    """
    now, before = two_snapshots(prefix, interval)
    found = now.stats(None if before is None else before.totals())
    if as_json:
        print_json(found)
        return
    print_table(["", ""], _described(found))


def _described(found: Stats) -> list[tuple[str, str]]:
    memory, lock, rates = found.memory, found.lock, found.rates
    dropped = [f"{reason} {count}" for reason, count in found.dropped.items() if count]
    return [
        ("prefix", f"{found.prefix} (layout version {found.layout_version})"),
        ("counted since", f"{span(found.since)} ago"),
        ("messages waiting", f"{found.messages}, the oldest for {span(found.oldest)}"),
        ("sent", f"{found.sent} ({rate(rates.sent)}/s)"),
        ("received or expired", f"{rate(rates.left)}/s"),
        ("refused: full", f"{found.refused} ({rate(rates.refused)}/s)"),
        (
            "dropped",
            f"{sum(found.dropped.values())} ({rate(rates.dropped)}/s)"
            + (f": {', '.join(dropped)}" if dropped else ""),
        ),
        ("rates over", span(rates.period)),
        (
            "memory of messages",
            f"{size(memory.in_use)} in use, {size(memory.high_water)} high-water, "
            f"{size(memory.limit)} limit",
        ),
        ("memory of the segment", f"{size(memory.reserved)} reserved of {size(memory.size)}"),
        ("channels", str(found.channels)),
        ("groups", str(found.groups)),
        ("memberships", f"{found.memberships} of {found.memberships_limit}"),
        ("processes", str(found.processes)),
        (
            "lock",
            f"{lock.kind}; {lock.waits} calls slept for it, {span(lock.waited)} together, "
            f"{span(lock.longest)} at the most; "
            + (f"held by process {lock.holder}" if lock.holder else "free"),
        ),
        ("recoveries", str(found.recoveries)),
    ]


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, shell_complete=complete_channel)
@prefix_option
@interval_option
@click.option(
    "--sort", type=click.Choice(list(_ORDERS)), default="name", show_default=True, help="The order."
)
@json_option
def channels(
    patterns: tuple[str, ...], prefix: str, interval: float, sort: str, as_json: bool
) -> None:
    """Show the channels whose names match a PATTERN (a glob), or all.

    DEPTH is how many messages wait, of how many that may; "?" until somebody has sent. READERS are
    the processes that wait for a message at this instant; "owner" is the one that a
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
        ["CHANNEL", "DEPTH", "OLDEST", "IN/S", "OUT/S", "SENT", "REFUSED", "DROPPED", "READERS"],
        [
            [
                channel.name,
                depth(channel.messages, channel.capacity),
                span(channel.oldest) if channel.messages else "-",
                rate(channel.sent_rate),
                rate(channel.left_rate),
                str(channel.sent),
                str(channel.refused),
                str(sum(channel.dropped.values())),
                readers(channel),
            ]
            for channel in found
        ],
        right="DEPTH OLDEST IN/S OUT/S SENT REFUSED DROPPED",
    )


def readers(channel: Channel) -> str:
    """Who reads a channel, as far as it can be seen."""
    known = [str(pid) for pid in channel.waiting if pid != channel.owner]
    if channel.owner:
        known.insert(0, f"owner {channel.owner}")
    return ", ".join(known) or "-"


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, shell_complete=complete_group)
@prefix_option
@json_option
def groups(patterns: tuple[str, ...], prefix: str, as_json: bool) -> None:
    """Show the groups whose names match a PATTERN (a glob), or all, with their members."""
    found = Snapshot(View(prefix)).groups()
    names = selected([group.name for group in found], patterns)
    found = [group for group in found if group.name in names]
    if as_json:
        print_json(found)
        return
    print_table(
        ["GROUP", "MEMBERS", "CHANNEL", "EXPIRES IN"],
        [
            [
                group.name if first else "",
                str(len(group.members)) if first else "",
                member.channel,
                span(member.expires),
            ]
            for group in found
            for first, member in zip([True] + [False] * len(group.members), group.members)
        ],
        right="MEMBERS",
    )


@click.command()
@prefix_option
@json_option
def processes(prefix: str, as_json: bool) -> None:
    """Show who is attached, and who has died and is not cleared up yet."""
    found = Snapshot(View(prefix)).processes()
    if as_json:
        print_json(found)
        return
    print_table(
        ["PID", "STATE", "USER", "ATTACHED", "WAITS FOR", "OWNS", "COMMAND"],
        [
            [
                str(process.pid),
                process.state + (" (holds the lock)" if process.holds_lock else ""),
                user_name(process.uid),
                span(process.attached),
                _some(process.waiting),
                _some(process.owns),
                process.command or "?",
            ]
            for process in found
        ],
        right="PID ATTACHED",
    )


def _some(names: tuple[str, ...], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return (f"{shown} and {len(names) - most} more" if len(names) > most else shown) or "-"
