"""How the code is cut: who may import whom, and who may talk to the operating system."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import asgi_ipc

from ..contract import run_python

PACKAGE = Path(asgi_ipc.__file__).parent

# From the bottom to the top. A module imports from its own band and from those before it.
BANDS = {
    "leaves": {"errors", "names", "layout", "codec", "options", "base_layer", "statistics"},
    "store": {
        *("memory", "table", "log", "waiters", "queues", "store"),
        *("groups", "plans", "recovery", "inbox", "verify"),
    },
    "system": {"files", "cgroup", "lock", "doorbell", "procfs", "segment"},
    "attachment": {"drops", "attachment"},
    "looking": {"view", "locked", "inspection", "tap"},
    "core": {"aio.base", "aio.spin", "aio.receiving", "aio.core", "aio.hub", "readers"},
    "shells": {"aio.layer", "aio.waiter", "sync", "reactor"},
    "machines": {
        *("aio.directory", "aio.distributed", "aio.loop_thread", "aio.relay", "aio.remote"),
        *("aio.incoming", "aio.local_and_remote", "local_and_remote"),
    },
    "packages": {"", "aio"},
    "adapters": {
        *("wsgi.messages", "wsgi.replies", "wsgi.adapter", "wsgi.reply", "wsgi.worker"),
        *("wsgi.command", "wsgi", "wsgi.__main__"),
    },
    "operating": {
        *("surroundings", "diagnosis", "prometheus"),
        *("django", "django.apps", "django.checks"),
    },
    "command": {
        *("__main__", "command", "command.cli", "command.common", "command.exits"),
        *("command.show", "command.top", "command.screen", "command.tail"),
        *("command.messages", "command.care", "command.doctor"),
        *("command.bench", "command.export", "command.wsgi_worker"),
    },
    "for tests": {
        *("testing", "testing.in_process", "testing.aio", "testing.sync"),
        *("testing.isolation", "testing.plugin", "testing.django"),
    },
    "frameworks": {"litestar"},
    "conformance": {
        *("conformance", "conformance.base", "conformance.cases", "conformance.blocking"),
        *("conformance.asynchronous", "conformance.channels1", "conformance.channels4"),
    },
}

# What modules that know no clock, no lock and no system call have use for.
PURE = {
    *("__future__", "typing", "collections", "collections.abc", "dataclasses", "contextlib"),
    *("struct", "zlib", "hashlib", "base64", "re", "fnmatch", "sys", "warnings", "importlib"),
    *("importlib.util", "itertools", "math", "msgpack"),
}

CONFORMANCE = BANDS["conformance"]

# Who else may import what. Anything optional is imported only where it is used.
ONLY = {
    "posix_ipc": {"segment"},
    "ctypes": {"lock"},
    "asyncio": {
        *("aio.layer", "aio.waiter", *CONFORMANCE),
        *("aio.directory", "aio.distributed", "aio.loop_thread", "aio.relay", "aio.remote"),
        *("aio.incoming", "aio.local_and_remote"),
    },
    "async_timeout": {"aio.waiter"},
    "msgpack": {"codec"},
    "cryptography": {"codec"},
    "twisted": {"reactor"} | CONFORMANCE,
    "zope": {"reactor"},
    "django": {"django.apps", "django.checks", "testing.django"},
    "click": {name for name in BANDS["command"] if name.startswith("command.")},
    "rich": {"command.common", "command.screen"},
    "textual": {"command.screen"},
    "prometheus_client": {"prometheus", "command.export"},
    "channels": set(),
    "pytest": {"testing.plugin"} | CONFORMANCE,
    "channels_redis": set(),
    "asgi_redis": set(),
    "asgiref": CONFORMANCE,
    "redis": set(),
}


class Import(NamedTuple):
    """One import: by whom, of what, and whether it happens with that of the importer."""

    importer: str
    imported: str
    ours: bool
    at_once: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name in it."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(name: str, path: Path) -> Iterator[Import]:
    """All imports of a module but those for type checkers alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, inner in walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, False, not inner)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield Import(name, node.module or "", False, not inner)
                continue
            base = package.split(".") if package else []
            base = base[: len(base) - node.level + 1]
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                deeper = f"{origin}.{alias.name}".lstrip(".")
                yield Import(name, deeper if deeper in modules() else origin, True, not inner)


def walk(tree: ast.AST, inner: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield other, inner
                yield from walk(other, inner)
            continue
        yield node, inner
        yield from walk(node, inner or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


@cache
def everything() -> list[Import]:
    return [found for name, path in modules().items() for found in imports(name, path)]


def band(name: str) -> int:
    """How high a module stands; one that has no place yet, nowhere."""
    return next((i for i, names in enumerate(BANDS.values()) if name in names), -1)


def test_every_module_has_its_place() -> None:
    placed = [name for names in BANDS.values() for name in names]
    assert sorted(placed) == sorted(modules()), "a module is new, or gone: give it a place in BANDS"


def test_the_imports_are_seen() -> None:
    """So that what follows says something."""
    found = everything()
    assert Import("store", "queues", True, True) in found
    assert Import("attachment", "recovery", True, True) in found
    assert Import("aio.core", "errors", True, True) in found
    assert Import("segment", "posix_ipc", False, True) in found
    assert Import("codec", "cryptography.fernet", False, False) in found
    assert len(found) > 150


def test_imports_never_go_upward() -> None:
    upward = [
        (found.importer, found.imported)
        for found in everything()
        if found.ours and band(found.imported) > band(found.importer)
    ]
    assert upward == []


def test_imports_never_go_round() -> None:
    uses: dict[str, set[str]] = {name: set() for name in modules()}
    for found in everything():
        if found.ours and found.at_once:
            uses[found.importer].add(found.imported)
    while uses:
        free = [name for name in uses if not uses[name] & set(uses) - {name}]
        assert free, f"these import each other: {sorted(uses)}"
        for name in free:
            del uses[name]


@pytest.mark.parametrize("name", sorted(BANDS["leaves"] | BANDS["store"]))
def test_the_store_and_the_leaves_know_no_clock_and_no_system_call(name: str) -> None:
    found = [i for i in imports(name, modules()[name]) if not i.ours and i.at_once]
    assert found
    assert {i.imported for i in found} <= PURE


@pytest.mark.parametrize("what", sorted(ONLY))
def test_only_those_import_it_that_use_it(what: str) -> None:
    importers = {i.importer for i in everything() if i.imported.partition(".")[0] == what}
    assert importers <= ONLY[what]


def test_the_conformance_suites_know_nothing_of_the_package_around_them() -> None:
    """They are run for layers that are installed under its name, asgi_ipc 1.4 for one."""
    found = {i.imported for i in everything() if i.importer in CONFORMANCE and i.ours}
    assert found and found <= CONFORMANCE


@pytest.mark.parametrize("module", ["asgi_ipc", "asgi_ipc.aio"])
def test_an_import_of_the_package_imports_nothing_optional(module: str) -> None:
    source = f"""
import sys, {module}
optional = {{"django", "channels", "asgiref", "twisted", "redis", "cryptography", "uvloop"}}
print("asgi_ipc.segment" in sys.modules, sorted(optional & set(sys.modules)))
"""
    assert run_python(source) == "True []"


def test_the_version_is_one_that_strict_parsers_take() -> None:
    """Channels 1 reads it with such a one, and refuses to start on anything else."""
    numbers = asgi_ipc.__version__.split(".")
    assert len(numbers) == 3 and all(number.isdecimal() for number in numbers)
