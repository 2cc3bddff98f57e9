"""What the tests of real segments share: small ones, attached to and left, and their files."""

from __future__ import annotations

import contextlib
import importlib
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.segment import shm
from asgi_ipc.segment.notes import tell
from asgi_ipc.segment.opening import attach
from asgi_ipc.segment.segment import Segment
from asgi_ipc.segment.wanted import Wanted
from asgi_ipc.store.layout import WORD

from ..forks import Line, child
from ..unit.support import KIB
from ..waiting import LIVENESS

SHM = Path("/dev/shm")
WAYS = ["posix_ipc", "files"]  # to open shared memory by its name


def wants(prefix: str, **options: Any) -> Wanted:
    """A small segment."""
    defaults: dict[str, Any] = {
        "message_memory": 256 * KIB,
        "group_memory": 64 * KIB,
        "max_message_size": 4 * KIB,
        "mode": 0o600,
        "lock": "mutex",
    }
    return Wanted(prefix, **{**defaults, **options})


@contextlib.contextmanager
def attached(wanted: Wanted) -> Iterator[tuple[Segment, int]]:
    """Attach, and leave again."""
    found, index = attach(wanted, LIVENESS)
    try:
        yield found, index
    finally:
        found.members.release(index)
        found.members.close()
        found.close()


def attach_and_leave(wanted: Wanted) -> int:
    """The nonce of the segment that was found or made."""
    with attached(wanted) as (found, _):
        return found.nonce


def living(wanted: Wanted) -> Any:
    """A child that is attached; it says the nonce."""

    def live(line: Line) -> None:
        with attached(wanted) as (found, _):
            line.say(found.nonce)
            line.hear()

    return child(live)


def file_of(prefix: str) -> Path:
    return SHM / f"asgi_ipc.{prefix}"


def folder_of(prefix: str) -> Path:
    return SHM / f"asgi_ipc.{prefix}.d"


def write_word(prefix: str, at: int, value: int) -> None:
    with file_of(prefix).open("r+b") as file:
        file.seek(at * WORD)
        file.write(value.to_bytes(WORD, "little"))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    tell()
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def use(way: str) -> None:
    """Let this process open shared memory in one of the `WAYS`; skip the test if it cannot."""
    library = None
    if way == "posix_ipc":
        try:
            library = importlib.import_module(way)
        except ImportError:
            pytest.skip("lacking: posix_ipc")
    shm._posix_ipc = library
