"""What a run must not leave behind: segments, files and processes.

The tests clear up after themselves, however they end. This module only looks whether they did. It
must not import the package under test.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

# The shared memory of segments; the folders and locks that lie elsewhere where there is none.
FOLDERS = (Path("/dev/shm"), Path("/tmp"))
PROCESSES = Path("/proc")

# Set to the id of the run's first process, in the environment of all processes that it starts.
VARIABLE = "ASGI_IPC_TEST_RUN"


class Leftovers:
    """What one run has left behind; made at its beginning, and only in its first process."""

    def __init__(self) -> None:
        os.environ[VARIABLE] = str(os.getpid())
        self._before = set(_files())

    def files(self) -> list[Path]:
        """Those that are left of a segment or a lock, and belong to no other run."""
        return sorted(path for path in set(_files()) - self._before if not _in_use(path))

    def processes(self) -> dict[int, str]:
        """The command line of each process of this run that still runs, by its process id."""
        found = {}
        for folder in PROCESSES.glob("[1-9]*"):
            # Those of others cannot be read, and one may end at any moment.
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
                # One without a command line is about to end: it has no memory any more. Python's
                # own helpers end with the process that they help. The workers of a pool need not.
                helper = re.search(rb" multiprocessing\.(resource_tracker|forkserver) ", command)
                if command and not helper and _is_of_this_run(folder):
                    found[int(folder.name)] = command.decode(errors="replace")
        return found

    def remove(self) -> list[str]:
        """End and remove everything; a line for each thing."""
        lines = []
        for pid, command in self.processes().items():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            lines.append(f"process {pid}: {command}")
        for path in self.files():
            lines.append(str(path))
            if _of_a_test(path):  # else it may be somebody else's
                _remove(path)
        return lines


def _files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from folder.glob("asgi_ipc.*")


def _is_of_this_run(process: Path) -> bool:
    """Whether this process started or forked another one, or one that it started did."""
    state, parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    mine = f"{VARIABLE}={os.getpid()}".encode()
    return state != "Z" and (
        parent == str(os.getpid()) or mine in (process / "environ").read_bytes().split(b"\0")
    )


def _of_a_test(path: Path) -> bool:
    """Whether the fixture `prefix` gave this name."""
    return re.match(r"asgi_ipc\.t\d+-", path.name) is not None


def _in_use(path: Path) -> bool:
    """Whether the first number in the name is another process that still runs."""
    number = re.search(r"\d+", path.name)
    if number is None or int(number.group()) == os.getpid():
        return False
    try:
        os.kill(int(number.group()), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if not path.is_dir():
            path.unlink()
            return
        for inside in path.iterdir():
            inside.unlink()
        path.rmdir()
