"""How the code is cut: who may import whom, and who may talk to the operating system.

The table of floors in CONTRIBUTING.rst says what stands where; docs/design.rst shows it, too. A new
module in a folder needs no word here. A new folder, or a new module beside the folders, needs a row
in that table.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

import asgi_ipc

from .. import structure
from ..structure import PUBLIC, REPOSITORY, Import, room

FLOORS = structure.floors()
LEAVES = {name for name, floor in FLOORS.items() if floor == 1}

# What modules that know no clock, no lock and no system call have use for.
PURE = {
    *("__future__", "typing", "collections", "collections.abc", "dataclasses", "contextlib"),
    *("struct", "zlib", "hashlib", "base64", "re", "fnmatch", "sys", "warnings", "importlib"),
    *("functools", "gc", "importlib.util", "itertools", "math", "msgpack"),
}

# Who alone may import what, by folder or module. Anything optional is imported only where it is
# used.
ONLY = {
    "posix_ipc": {"segment.shm"},
    "ctypes": {"segment", ""},  # the package itself looks whether it is there
    "fcntl": {"segment", "machines"},
    "mmap": {"segment", "inspection", "testing"},
    # What runs under a lock makes a note (`segment.notes`), which is logged later.
    "logging": {
        *("segment.notes", "attachment.attachment", "attachment.drops", "attachment.upkeep"),
        *("aio.membership", "aio.receiving", "machines", "litestar", "wsgi"),
    },
    "asyncio": {
        *("aio.loop", "aio.layer", "aio.subscription"),
        *("machines", "conformance", "litestar", "socketio"),
    },
    "async_timeout": {"aio.loop"},
    "msgpack": {"codec"},
    "cryptography": {"codec"},
    "twisted": {"aio.reactor", "conformance"},
    "zope": {"aio.reactor"},
    "django": {"django", "testing.django"},
    "click": {"command"},
    "rich": {"command"},
    "textual": {"command.screen"},
    "prometheus_client": {"prometheus", "command.export"},
    "litestar": {"litestar"},
    "socketio": {"socketio"},
    "pytest": {"testing.plugin", "conformance"},
    "asgiref": {"conformance"},
    "channels": set(),
    "channels_redis": set(),
    "asgi_redis": set(),
    "redis": set(),
}

# Who reads the words of a segment: what stands on the floors below the operations, the operations,
# and among the neighbours those that show a copy of a segment, compare its sizes or provide one.
READERS = {
    *(name for name, floor in FLOORS.items() if floor < FLOORS["aio"] and name not in LEAVES),
    *("aio.operations", "aio.receiving", "aio.sending", "aio.source", "aio.session", "aio.fanout"),
    *("prometheus", "django", "testing"),
}


@cache
def everything() -> list[Import]:
    return list(structure.imports())


def ours() -> list[Import]:
    return [found for found in everything() if found.ours]


def within(module: str, places: set[str]) -> bool:
    """Whether a module is one of these, or lies in one of these folders."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def floor(module: str) -> int:
    return FLOORS[room(module)]


def test_every_folder_and_module_has_its_floor() -> None:
    """Each is in the table, once, and from the top floor down to the ground."""
    rows = structure.table(REPOSITORY / "CONTRIBUTING.rst").count("\n``")
    assert rows == len(FLOORS)
    assert FLOORS.keys() == {room(name) for name in structure.modules()}
    assert list(FLOORS.values()) == sorted(FLOORS.values(), reverse=True)
    assert set(FLOORS.values()) == set(range(1, max(FLOORS.values()) + 1))


def test_the_design_shows_the_same_floors() -> None:
    shown = structure.table(REPOSITORY / "docs" / "design.rst")
    assert shown == structure.table(REPOSITORY / "CONTRIBUTING.rst")


def test_the_imports_are_seen() -> None:
    """So that the tests below say something."""
    found = everything()
    assert Import("store.store", "store.queues", True, True) in found
    assert Import("aio.operations", "errors", True, True) in found
    assert Import("aio", "aio.layer", True, False) in found
    assert Import("codec", "cryptography.fernet", False, False) in found
    assert any(one.imported == "msgpack" and one.at_once for one in found)
    assert len(found) > 150


def test_imports_never_go_upward() -> None:
    """Except where a package gives a public name to what stands above it, when asked for it."""
    upward = {
        (one.importer, one.imported)
        for one in ours()
        if floor(one.imported) > floor(one.importer) and (one.at_once or one.importer not in PUBLIC)
    }
    assert upward == set()


def test_imports_never_go_round() -> None:
    uses: dict[str, set[str]] = {name: set() for name in structure.modules()}
    for one in ours():
        if one.at_once:
            uses[one.importer].add(one.imported)
    while uses:
        free = [name for name in uses if not uses[name] & set(uses) - {name}]
        assert free, f"these import each other: {sorted(uses)}"
        for name in free:
            del uses[name]


def test_the_store_and_the_leaves_know_no_clock_and_no_system_call() -> None:
    found = {
        one.imported
        for one in everything()
        if not one.ours
        and one.at_once
        and within(one.importer, {"store", *LEAVES} - {"clock"})
        and one.importer != "store.native"  # it loads an extension, or finds out why it cannot
    }
    assert found and found <= PURE


def test_all_others_read_the_clock_of_the_package() -> None:
    """Test tools replace those of `time` (sleeping they leave alone)."""
    allowed = {"clock", "conformance", "command.bench"}
    reading = {
        name
        for name, path in structure.modules().items()
        if re.search(r"\btime\.(monotonic|perf_counter)|from time import", path.read_text("utf-8"))
    }
    assert "clock" in reading
    assert {name for name in reading if not within(name, allowed)} == set()


def test_nothing_above_the_operations_reads_the_words_of_a_segment() -> None:
    readers = {one.importer for one in ours() if one.imported == "store.layout"}
    assert any(within(name, READERS) for name in readers)
    assert {name for name in readers if not within(name, READERS)} == set()


@pytest.mark.parametrize("what", sorted(ONLY))
def test_only_those_import_it_that_use_it(what: str) -> None:
    importers = {i.importer for i in everything() if i.imported.partition(".")[0] == what}
    assert {name for name in importers if not within(name, ONLY[what])} == set()


def test_the_conformance_suites_know_nothing_of_the_package_around_them() -> None:
    """They are run for layers that are installed under its name, asgi_ipc 1.4 for one."""
    found = {room(one.imported) for one in ours() if room(one.importer) == "conformance"}
    assert found == {"conformance"}


def test_the_version_is_one_that_strict_parsers_take() -> None:
    """Channels 1 reads it with such a one, and refuses to start on anything else."""
    numbers = asgi_ipc.__version__.split(".")
    assert len(numbers) == 3 and all(number.isdecimal() for number in numbers)
