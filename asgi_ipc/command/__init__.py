"""The command ``asgi-ipc``: look into a layer and operate it. docs/command.rst describes it.

A subcommand is in the module of its name; three share `messages`, and `top` has its `screen` apart:

=====================  =======================================================
inspecting             `list` `stats` `channels` `groups` `processes`
watching               `top` (with `screen`) `tail`
sending and receiving  `messages`: send, receive, group-send
maintenance            `doctor` `verify` `flush` `destroy` `bench`
serving                `wsgi_worker` `export`
shared by all          `cli` (their list) `common` (options, output) `exits`
=====================  =======================================================

Nothing else in the package may import this one. It reads layers through `inspection` only.
"""

from __future__ import annotations

import sys

from .exits import UNUSABLE


def main() -> None:
    """Run the console script."""
    try:
        from .cli import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        print(
            f"asgi-ipc needs {error.name}, which is not installed: pip install 'asgi_ipc[cli]'",
            file=sys.stderr,
        )
        sys.exit(UNUSABLE)
    cli(prog_name="asgi-ipc")
