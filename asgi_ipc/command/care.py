"""``verify``, ``flush`` and ``destroy``: what is done to a layer from outside."""

from __future__ import annotations

import contextlib
import os
import sys

import click

from .. import IPCChannelLayer, segment
from ..attachment.process import attached_processes
from ..errors import CorruptStore, IPCError
from ..inspection import locked
from ..inspection.view import View
from ..segment.files import Descriptor
from ..segment.opening import open_existing
from ..segment.paths import Paths, full_prefix
from ..segment.procfs import command_line, user_name
from .common import fail, json_option, prefix_option, print_json, timeout_option
from .exits import NOT_NOW, NOT_WELL, UNUSABLE


@click.command()
@prefix_option
@timeout_option
@json_option
def verify(prefix: str, timeout: float, as_json: bool) -> None:
    """Check every invariant of a layer, and say in words what is wrong.

    Looks at a copy. The lock is taken, for as long as another copy takes, only if there is
    something to complain of: under traffic the first is not of one moment.
    Exit status 1: something is wrong. The remedy is then `asgi-ipc flush`.
    """
    try:
        found = locked.complaints(View(prefix), timeout)
    except CorruptStore as error:
        found = [str(error)]
    if as_json:
        print_json({"prefix": prefix, "well": not found, "problems": found})
    elif not found:
        click.echo(f"All invariants of prefix {prefix!r} hold.")
    else:
        click.echo("\n".join(found))
    sys.exit(NOT_WELL if found else 0)


@click.command()
@prefix_option
@timeout_option
def flush(prefix: str, timeout: float) -> None:
    """Forget all messages and groups of a layer.

    Its processes go on, and wait for new messages. Also mends a layer that is damaged.
    """
    IPCChannelLayer(prefix, **View(prefix).options(), lock_timeout=timeout).flush()
    click.echo(f"Flushed prefix {prefix!r}.")


@click.command()
@prefix_option
@click.option("--force", is_flag=True, help="Also while processes are attached.")
def destroy(prefix: str, force: bool) -> None:
    """Remove the shared memory of a layer, with all that is in it.

    Refuses while processes are attached: they would lose what is in it, get SegmentVanished within
    a second, and make the memory anew with their next call. Also removes what a layer left behind
    that cannot be read any more.
    """
    paths = Paths(full_prefix(prefix))
    owner = _owner(paths)
    if owner is None:
        View(prefix)  # says which layers there are
        return
    if owner != os.geteuid():
        fail(f"prefix {prefix!r} belongs to {user_name(owner)}; run this as that user", UNUSABLE)
    attached = _attached(paths)
    if attached and not force:
        listed = "; ".join(f"{pid} {command_line(pid)[:60]}".strip() for pid in attached)
        fail(
            f"{len(attached)} processes are attached to prefix {prefix!r} ({listed}): end them "
            "first, or give --force",
            NOT_NOW,
        )
    segment.destroy(prefix)
    click.echo(f"Removed prefix {prefix!r}.")


def _owner(paths: Paths) -> int | None:
    """The uid that a layer, or what is left of one, belongs to; None if there is nothing."""
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(paths.directory).st_uid
    with contextlib.suppress(IPCError):
        return _owner_of(open_existing(paths))
    return None


def _attached(paths: Paths) -> list[int]:
    try:
        return sorted(set(attached_processes(paths.members).values()))
    except OSError:
        return []


def _owner_of(opened: Descriptor) -> int:
    return os.fstat(opened.number).st_uid
