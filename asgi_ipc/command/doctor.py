"""``doctor``: problems of the layers and the machine, and their remedies."""

from __future__ import annotations

import sys

import click

from ..inspection.diagnosis import diagnose
from ..inspection.surroundings import OK, PROBLEM, WARNING
from .common import group_expiry_option, json_option, print_json, say
from .exits import NOT_WELL

_MARKS = {OK: "ok      ", WARNING: "warning ", PROBLEM: "PROBLEM "}
_INDENT = " " * 8


@click.command()
@click.option(
    "--prefix",
    envvar="ASGI_IPC_PREFIX",
    show_envvar=True,
    metavar="PREFIX",
    help="Check only this layer instead of all.",
)
@group_expiry_option
@json_option
def doctor(prefix: str | None, group_expiry: float, as_json: bool) -> None:
    """Find problems and possible problems here, and how to fix them.

    Checks the size and permissions of /dev/shm, systemd's RemoveIPC, the limits of containers and
    processes, leftovers, and each layer: versions, namespaces, the holder of the lock, invariants,
    full and unread channels, and memberships that end soon because nobody renews them. Run it as
    the user of the layer, or as root, which sees more processes. Exit status 1: there is a problem;
    warnings do not count.
    """
    found = diagnose(prefix, group_expiry)
    if as_json:
        print_json(found)
    else:
        for finding in found:
            where = f"{finding.prefix}: " if finding.prefix else ""
            text = f"{_MARKS[finding.level]}{where}{finding.subject}: {finding.text}"
            say(text, indent=_INDENT, shorten=True)
            if finding.remedy:
                say(f"{_INDENT}-> {finding.remedy}", indent=f"{_INDENT}   ")
    sys.exit(NOT_WELL if any(finding.level == PROBLEM for finding in found) else 0)
