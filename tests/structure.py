"""The structure of the package, read from its sources; nothing is imported.

    python -m tests.structure [PACKAGE]    counts what there is, in the folder of any package

A *room* is a file or a folder directly in the package. An *arrow* leads from a room to another one
that it imports from; imports for type checkers, and those by which a package gives public names to
what stands above it, do not count. The *floor* of a room is the longest way down from it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "asgi_ipc"

# The packages whose __init__ gives public names to what stands above it, by imports when asked.
PUBLIC = {"", "aio"}


class Import(NamedTuple):
    """One import: by which module, of what, and whether it happens with that of the importer."""

    importer: str
    imported: str
    ours: bool
    at_once: bool


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module by its name in the package; that of the package is ""."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def room(module: str) -> str:
    """The top-level module or folder that a module is in, or is."""
    return module.partition(".")[0]


def imports(package: Path = PACKAGE) -> Iterator[Import]:
    """All imports of all modules, except those for type checkers alone."""
    known = modules(package)
    for name, path in known.items():
        parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, inner in _walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(name, alias.name, False, not inner)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield Import(name, node.module or "", False, not inner)
            elif isinstance(node, ast.ImportFrom):
                origin = _absolute(parent, node.level, node.module or "")
                for alias in node.names:
                    deeper = f"{origin}.{alias.name}".lstrip(".")
                    yield Import(name, deeper if deeper in known else origin, True, not inner)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # What import_module is given, at once or by way of a table.
                written = re.fullmatch(r"(\.+)(\w[\w.]*)", node.value)
                if written:
                    origin = _absolute(parent, len(written[1]), written[2])
                    if origin in known:
                        yield Import(name, origin, True, False)


def _absolute(parent: str, level: int, name: str) -> str:
    """What a relative import in a package of ours means."""
    parts = parent.split(".") if parent else []
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [name])])


def _walk(tree: ast.AST, inner: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield other, inner
                yield from _walk(other, inner)
            continue
        yield node, inner
        yield from _walk(node, inner or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


# -- The table of floors -------------------------------------------------------------------------


def table(page: Path) -> str:
    """The table of floors as it stands on a page."""
    found = re.search(r"^=+ =+ =+\nfolder or file .*\n(?:.+\n)+", page.read_text("utf-8"), re.M)
    assert found, f"{page} has no table of floors"
    return found[0]


def floors(page: Path = REPOSITORY / "CONTRIBUTING.rst") -> dict[str, int]:
    """The floor of each room, as the table says."""
    rows = re.findall(r"^``(\w+)(?:/|\.py)`` +(\d+) ", table(page), re.M)
    return {"" if name == "__init__" else name: int(floor) for name, floor in rows}


# -- What there is, counted ----------------------------------------------------------------------


def count(package: Path) -> dict[str, int]:
    """Modules, their lines, rooms, floors and arrows."""
    found = modules(package)
    rooms = {room(name) for name in found}
    arrows = {
        (room(one.importer), room(one.imported))
        for one in imports(package)
        if one.ours and (one.at_once or one.importer not in PUBLIC)
    }
    arrows = {(above, below) for above, below in arrows if above != below}
    heights: dict[str, int] = {}
    while len(heights) < len(rooms):
        free = {
            name: max((heights[below] for above, below in arrows if above == name), default=0) + 1
            for name in rooms - set(heights)
            if all(below in heights for above, below in arrows if above == name)
        }
        if not free:
            sys.exit(f"these import each other: {sorted(rooms - set(heights))}")
        heights.update(free)
    return {
        "modules": len(found),
        "lines": sum(path.read_text(encoding="utf-8").count("\n") for path in found.values()),
        "rooms": len(rooms),
        "floors": max(heights.values()),
        "arrows": len(arrows),
    }


if __name__ == "__main__":
    for what, number in count(Path(*sys.argv[1:2] or [PACKAGE])).items():
        print(f"{what:8} {number:6,}")
