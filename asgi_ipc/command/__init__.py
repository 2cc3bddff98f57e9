"""The command ``asgi-ipc``: look into a layer and operate it. docs/command.rst describes it.

`subcommands` lists the subcommands. Each is in the module of its name; three share `messages`, and
`top` has its `screen` apart. All share `common` (options, output) and `exits`.

Nothing else in the package may import this one. It reads layers through `inspection` only.
"""

from __future__ import annotations

import sys

from .exits import UNUSABLE

_LACKING = "asgi-ipc needs click, which is not installed: pip install 'asgi_ipc[cli]'"


def main() -> None:
    """Run the console script."""
    try:
        from .cli import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "click":
            raise
        sys.exit(_without_click(sys.argv[1:]))
    cli(prog_name="asgi-ipc")


def _without_click(arguments: list[str]) -> int:
    """Do what works without the extra ``cli``. Returns the exit status."""
    if arguments == ["--version"]:
        from .. import __version__

        print(f"asgi-ipc, version {__version__}")
        return 0
    if arguments in ([], ["-h"], ["--help"]):
        from .subcommands import overview

        print(f"{overview()}\n\n{_LACKING}")
        return 0
    print(f"Error: {_LACKING}", file=sys.stderr)
    return UNUSABLE
