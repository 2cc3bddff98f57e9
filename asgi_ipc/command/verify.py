"""``verify``: check the invariants of a layer."""

from __future__ import annotations

import sys

import click

from ..errors import CorruptStore
from ..inspection import locked
from ..inspection.view import View
from .common import json_option, prefix_option, print_json, say, timeout_option, write
from .exits import NOT_WELL


@click.command()
@prefix_option
@timeout_option
@json_option
def verify(prefix: str, timeout: float, as_json: bool) -> None:
    """Check every invariant of a layer, and describe those that do not hold.

    Checks a copy. If the copy looks wrong, which can happen under traffic, it takes the lock for
    the time of another copy. Exit status 1: something is wrong; `asgi-ipc flush` repairs it. An
    interrupted call is not damage: the next call recovers the store.
    """
    try:
        found = locked.complaints(View(prefix), timeout)
    except CorruptStore as error:
        found = [str(error)]
    damage = locked.damage(found)
    if as_json:
        print_json({"prefix": prefix, "well": not damage, "problems": damage})
    elif damage:
        say("\n".join(damage))
    else:
        write("\n".join(found) or f"All invariants of prefix {prefix!r} hold.")
    sys.exit(NOT_WELL if damage else 0)
