"""``stats``: the figures of a layer as a whole."""

from __future__ import annotations

import click

from ..statistics import Stats, size
from .common import (
    counted,
    interval_option,
    json_option,
    prefix_option,
    print_json,
    print_pairs,
    rate,
    span,
    two_snapshots,
    waiting,
)


@click.command()
@prefix_option
@interval_option
@json_option
def stats(prefix: str, interval: float, as_json: bool) -> None:
    """Show the figures of a layer as a whole.

    Counters start when the layer is created or flushed.
    """
    now, before = two_snapshots(prefix, interval)
    found = now.stats(None if before is None else before.totals())
    if as_json:
        print_json(found)
        return
    print_pairs(_described(found))


def _described(found: Stats) -> list[tuple[str, str]]:
    memory, lock, rates = found.memory, found.lock, found.rates
    dropped = [f"{reason} {count}" for reason, count in found.dropped.items() if count]
    return [
        ("prefix", f"{found.prefix} (layout version {found.layout_version})"),
        ("counted since", f"{span(found.since)} ago"),
        ("pending", waiting(found.pending, found.oldest)),
        ("sent", f"{found.sent} ({rate(rates.sent)}/s)"),
        ("received or expired", f"{rate(rates.left)}/s"),
        ("refused", f"{found.refused} ({rate(rates.refused)}/s)"),
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
        ("abandoned", counted(found.abandoned, "membership")),
        ("processes", str(found.processes)),
        (
            "lock",
            f"{lock.kind}; {counted(lock.waits, 'call')} slept for it"
            + (
                f", {span(lock.waited)} in total, {span(lock.longest)} at most"
                if lock.waits
                else ""
            )
            + (f"; held by process {lock.holder}" if lock.holder else "; free"),
        ),
        ("recoveries", str(found.recoveries)),
        ("send and receive", f"{found.implementation}, for the Python of this command"),
    ]
