"""``doctor``: what could go wrong here, and how to mend it."""

from __future__ import annotations

import sys

import click

from ..inspection.diagnosis import diagnose
from ..inspection.surroundings import OK, PROBLEM, WARNING
from .common import json_option, print_json
from .exits import NOT_WELL

_MARKS = {OK: "ok      ", WARNING: "warning ", PROBLEM: "PROBLEM "}


@click.command()
@click.option(
    "--prefix",
    envvar="ASGI_IPC_PREFIX",
    show_envvar=True,
    metavar="PREFIX",
    help="Look at this layer only; without it at all that there are.",
)
@json_option
def doctor(prefix: str | None, as_json: bool) -> None:
    """Say what could go wrong here, and how to mend it.

    Looks at /dev/shm and who may use it, at systemd's RemoveIPC, at the limits of containers and
    processes, at what was left behind, and at each layer: versions, namespaces, who holds the lock,
    invariants, full and unread channels. Best run as the user of the layer, or as root, who sees
    more of the processes. Exit status 1: there is a problem. Warnings do not count.
    """
    found = diagnose(prefix)
    if as_json:
        print_json(found)
    else:
        for finding in found:
            where = f"{finding.prefix}: " if finding.prefix else ""
            click.echo(f"{_MARKS[finding.level]}{where}{finding.subject}: {finding.text}")
            if finding.remedy:
                click.echo(f"        -> {finding.remedy}")
    sys.exit(NOT_WELL if any(finding.level == PROBLEM for finding in found) else 0)
