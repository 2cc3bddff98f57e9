"""``groups``: the groups of a layer and their members."""

from __future__ import annotations

import click

from ..inspection.snapshot import Snapshot
from ..inspection.view import View
from .common import (
    Column,
    complete_group,
    json_option,
    none,
    prefix_option,
    print_json,
    print_table,
    say,
    selected,
    span,
    wide_option,
)


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, shell_complete=complete_group)
@prefix_option
@wide_option
@json_option
def groups(patterns: tuple[str, ...], prefix: str, wide: bool, as_json: bool) -> None:
    """Show all groups, or those whose names match a PATTERN (a glob), with their members."""
    found = Snapshot(View(prefix)).groups()
    names = selected([group.name for group in found], patterns)
    found = [group for group in found if group.name in names]
    if as_json:
        print_json(found)
        return
    if not found:
        say(none("group", patterns))
        return
    print_table(
        [
            Column("GROUP", least=16),
            Column("MEMBERS", right=True, spare=1),
            Column("CHANNEL", least=24),
            Column("EXPIRES IN"),
        ],
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
        wide,
    )
