"""``list``: the layers on this machine."""

from __future__ import annotations

import click

from ..inspection.layers import layers
from ..statistics import Layer, size
from .common import (
    Column,
    counted,
    first_few,
    json_option,
    print_json,
    print_table,
    say,
    wide_option,
)


@click.command("list")
@wide_option
@json_option
def list_layers(wide: bool, as_json: bool) -> None:
    """List the layers on this machine, of all users.

    IN_USE is the memory of the messages, RESERVED what the layer has taken from the machine, and
    SIZE the most that it can take. PENDING counts the messages that wait. A ? stands for a figure
    that this user may not see.
    """
    found = layers()
    if as_json:
        print_json(found)
        return
    if not found:
        say("There are no layers on this machine.")
        return
    print_table(
        [
            Column("PREFIX", least=29),
            Column("OWNER", spare=1),
            Column("PROCESSES", right=True),
            Column("PENDING", right=True),
            Column("IN_USE", right=True),
            Column("RESERVED", right=True),
            Column("SIZE", right=True, spare=2),
            Column("MODE", spare=3),
            Column("VERSION", right=True, spare=4),
        ],
        [
            [
                layer.prefix,
                layer.owner,
                _known(layer.processes),
                _known(layer.pending),
                "?" if layer.in_use is None else size(layer.in_use),
                size(layer.reserved),
                size(layer.size),
                layer.mode,
                _known(layer.layout_version),
            ]
            for layer in found
        ],
        wide,
    )
    _explain(found)


def _known(figure: int | None) -> str:
    return "?" if figure is None else str(figure)


def _explain(found: list[Layer]) -> None:
    """Say why layers cannot be read: once for all those of other users."""
    foreign = [layer for layer in found if layer.foreign]
    if foreign:
        owners = sorted({layer.owner for layer in foreign})
        say(
            f"{counted(len(foreign), 'layer')} cannot be inspected by this user: to see more, "
            f"run this as root, or as the owner ({first_few(owners)}).",
            err=True,
        )
    for layer in found:
        if layer.problem and not layer.foreign:
            say(f"{layer.prefix}: {layer.problem}", err=True)
