"""``processes``: the processes of a layer."""

from __future__ import annotations

import click

from ..inspection.snapshot import Snapshot
from ..inspection.view import View
from ..segment.procfs import user_name
from .common import (
    Column,
    first_few,
    json_option,
    prefix_option,
    print_json,
    print_table,
    say,
    short_span,
    wide_option,
)


@click.command()
@prefix_option
@wide_option
@json_option
def processes(prefix: str, wide: bool, as_json: bool) -> None:
    """Show the attached processes, and dead ones that have not been cleared up after yet."""
    found = Snapshot(View(prefix)).processes()
    if as_json:
        print_json(found)
        return
    if not found:
        say("No process is attached.")
        return
    print_table(
        [
            Column("PID", right=True),
            Column("STATE"),
            Column("USER", spare=3),
            Column("ATTACHED", right=True, spare=1),
            Column("WAITS FOR", least=16),
            Column("OWNS", least=12, spare=2),
            Column("COMMAND", least=20),
        ],
        [
            [
                str(process.pid),
                process.state + (" (holds the lock)" if process.holds_lock else ""),
                user_name(process.uid),
                short_span(process.attached),
                first_few(process.waiting) or "-",
                first_few(process.owns) or "-",
                process.command or "?",
            ]
            for process in found
        ],
        wide,
    )
