"""``destroy``: remove the shared memory of a layer, or what is left of it."""

from __future__ import annotations

import contextlib
import os

import click

from .. import segment
from ..errors import IPCError
from ..inspection.surroundings import as_owner
from ..inspection.view import View, attached_to
from ..segment.opening import open_existing
from ..segment.paths import Paths, full_prefix
from ..segment.procfs import command_line, user_name
from .common import fail, prefix_option
from .exits import NOT_NOW, UNUSABLE


@click.command()
@prefix_option
@click.option("--force", is_flag=True, help="Remove it even if processes are attached.")
def destroy(prefix: str, force: bool) -> None:
    """Remove the shared memory of a layer, with everything in it.

    Refuses while processes are attached: they would lose what is in it and get SegmentVanished
    within a second; their next calls would create new shared memory. This also removes the remains
    of a layer that cannot be read any more.
    """
    paths = Paths(full_prefix(prefix))
    owner = _owner(paths)
    if owner is None:
        View(prefix)  # its error lists the layers that exist
        return
    if owner != os.geteuid():
        command = as_owner(f"asgi-ipc destroy --prefix {prefix}", owner)
        fail(
            f"prefix {prefix!r} belongs to {user_name(owner)}, and only that user may remove it: "
            f"{command}",
            UNUSABLE,
        )
    attached = sorted(set(attached_to(paths).values()))
    if attached and not force:
        listed = "; ".join(f"{pid} {command_line(pid)[:60]}".strip() for pid in attached)
        fail(
            f"prefix {prefix!r} is in use, by {listed}: end these processes first, or give --force",
            NOT_NOW,
        )
    segment.destroy(prefix)
    click.echo(f"Removed prefix {prefix!r}.")


def _owner(paths: Paths) -> int | None:
    """The uid of the owner of a layer, or of what is left of it; None if there is nothing."""
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(paths.directory).st_uid
    with contextlib.suppress(IPCError):
        opened = open_existing(paths)
        return os.fstat(opened.number).st_uid
    return None
