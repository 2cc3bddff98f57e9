"""``list``: the layers on this machine."""

from __future__ import annotations

import click

from ..inspection.layers import layers
from ..statistics import size
from .common import json_option, print_json, print_table


@click.command("list")
@json_option
def list_layers(as_json: bool) -> None:
    """List the layers on this machine, of all users.

    IN_USE is the memory of the messages, RESERVED what the layer has taken from the machine, SIZE
    the most that it can take. PENDING counts the messages that wait. A ? stands for what this user
    may not know.
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
            "PENDING",
            "PROCESSES",
        ],
        [
            [
                layer.prefix,
                str(layer.layout_version or "?"),
                layer.owner,
                layer.mode,
                "?" if layer.problem else size(layer.in_use),
                size(layer.reserved),
                size(layer.size),
                "?" if layer.problem else str(layer.pending),
                "?" if layer.processes is None else str(layer.processes),
            ]
            for layer in found
        ],
        right="VERSION IN_USE RESERVED SIZE PENDING PROCESSES",
    )
    for layer in found:
        if layer.problem:
            click.echo(f"{layer.prefix}: {layer.problem}", err=True)
