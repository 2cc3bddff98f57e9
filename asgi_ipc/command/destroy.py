"""``destroy``: remove the shared memory of layers, or what is left of it."""

from __future__ import annotations

import contextlib
import os
import re
import sys

import click
from click.core import ParameterSource

from .. import segment
from ..errors import IPCError
from ..inspection.surroundings import as_owner
from ..inspection.unused import Unused, unused
from ..inspection.view import View, attached_to
from ..segment.opening import open_existing, remove_unless
from ..segment.paths import Paths, full_prefix
from ..segment.procfs import command_line, user_name
from ..statistics import size
from .common import (
    Column,
    counted,
    cut,
    fail,
    first_few,
    prefix_option,
    print_table,
    say,
    short_span,
    span,
)
from .exits import NOT_NOW, NOT_WELL, UNUSABLE, WRONG_USAGE

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A time like 90s, 30m, 1h or 2d, in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
    if not found:
        raise click.BadParameter(f"{value!r} is not a time: write 90s, 30m, 1h or 2d.")
    return float(found[1]) * _UNITS[found[2]]


@click.command()
@prefix_option
@click.option("--force", is_flag=True, help="Remove it even if processes are attached.")
@click.option(
    "--unused",
    "all_unused",
    is_flag=True,
    help="Remove all layers of this user to which no process is attached. Asks first.",
)
@click.option(
    "--older",
    callback=_seconds,
    metavar="TIME",
    help="With --unused: only those that no process has used for this long: 90s, 30m, 1h, 2d.",
)
@click.option("--yes", is_flag=True, help="With --unused: do not ask.")
@click.pass_context
def destroy(
    context: click.Context,
    prefix: str,
    force: bool,
    all_unused: bool,
    older: float | None,
    yes: bool,
) -> None:
    """Remove the shared memory of a layer, with everything in it.

    Refuses while processes are attached: they would lose its contents, get SegmentVanished within a
    second, and create new shared memory with their next calls. This also removes the remains of a
    layer that can no longer be read.
    """
    if not all_unused:
        if older is not None or yes:
            raise click.UsageError("--older and --yes go with --unused.")
        _remove(prefix, force)
        return
    if force or context.get_parameter_source("prefix") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--unused takes neither --prefix nor --force.")
    _remove_unused(older or 0.0, yes)


# -- one layer ------------------------------------------------------------------------------------


def _remove(prefix: str, force: bool) -> None:
    paths = Paths(full_prefix(prefix))
    owner = _owner(paths)
    if owner is None:
        View(prefix)  # its error lists the layers that exist
        return
    if owner != os.geteuid():
        command = as_owner(f"asgi-ipc destroy --prefix {prefix}", owner)
        fail(
            f"prefix {prefix!r} belongs to {user_name(owner)}, and only that user may remove it "
            f"({command})",
            UNUSABLE,
        )
    attached = sorted(set(attached_to(paths).values()))
    if attached and not force:
        listed = [f"{pid} ({cut(command_line(pid), 60) or '?'})" for pid in attached]
        fail(
            f"prefix {prefix!r} is in use by {counted(len(attached), 'process', 'processes')}: "
            f"{first_few(listed)}. End them first, or give --force to take the layer from them",
            NOT_NOW,
        )
    segment.destroy(prefix)
    say(f"Removed prefix {prefix!r}.")


def _owner(paths: Paths) -> int | None:
    """The uid of the owner of a layer, or of what is left of it; None if there is nothing."""
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(paths.directory).st_uid
    with contextlib.suppress(IPCError):
        opened = open_existing(paths)
        return os.fstat(opened.number).st_uid
    return None


# -- all that nobody uses -------------------------------------------------------------------------


def _remove_unused(older: float, yes: bool) -> None:
    there = [one for one in unused() if one.idle >= older]
    mine = [one for one in there if one.uid == os.geteuid()]
    others = sorted({user_name(one.uid) for one in there if one not in mine})
    if mine and not yes:
        _ask(mine)
    for one in mine:
        try:
            removed = remove_unless(Paths(full_prefix(one.prefix)), attached_to)
        except IPCError as error:
            say(f"Left prefix {one.prefix!r}: {error}", err=True)
            continue
        if removed:
            say(f"Removed prefix {one.prefix!r}, {_described(one)}.")
        else:
            say(f"Left prefix {one.prefix!r}: a process has just attached.", err=True)
    if not mine:
        since = f" for {span(older)}" if older else ""
        say(f"There is nothing to remove: no layer of this user has been unused{since}.")
    if others:
        say(f"Other unused layers belong to {', '.join(others)}, who may remove them.", err=True)


def _ask(found: list[Unused]) -> None:
    """End the command unless the user agrees."""
    print_table(
        [
            Column("PREFIX", least=32),
            Column("UNUSED FOR", right=True),
            Column("RESERVED", right=True),
            Column("PENDING", right=True),
        ],
        [
            [
                one.prefix,
                short_span(one.idle),
                size(one.reserved),
                "?" if one.pending is None else str(one.pending),
            ]
            for one in found
        ],
    )
    if not sys.stdin.isatty():
        fail("there is no terminal to ask at: give --yes to remove these", WRONG_USAGE)
    if not click.confirm(f"Remove {counted(len(found), 'layer')}, with all messages?"):
        say("Nothing was removed.")
        sys.exit(NOT_WELL)


def _described(one: Unused) -> str:
    waiting = "" if one.pending is None else f", {counted(one.pending, 'message')}"
    return f"unused for {span(one.idle)} ({size(one.reserved)}{waiting})"
