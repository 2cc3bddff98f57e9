"""The command ``asgi-ipc``: see into a layer and operate it. docs/command.rst describes it.

A module for each few subcommands, which are entered in `cli`. Nothing else of the package imports
this one; what it knows of a layer it has from `inspection`.
"""

from __future__ import annotations

import sys

from .exits import UNUSABLE


def main() -> None:
    """The console script."""
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
