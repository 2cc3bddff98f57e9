"""The names of shared memory and files that follow from a prefix.

Beside each segment is a directory with

- ``attach.lock``: a process that creates, replaces or removes anything holds a flock on it;
- ``members``: each attached process holds an fcntl lock on the byte at the offset of its id. So
  the kernel says which processes live: the lock ends with the process, however that ends, a fork
  does not inherit it, and it works across PID namespaces. By locks behind these bytes, copies of
  this package in one process tell each other what they hold (`files.Members`);
- ``section.lock``: the lock itself, with the option ``lock="file"``;
- the doorbells of the waiters.

This module must not open, create or remove anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from hashlib import sha256

from ..errors import InvalidOption

SHM = "/dev/shm"  # where Linux shows its segments as files
NEEDED = sys.platform.startswith("linux")  # and without which it has no shared memory
MAX_PREFIX = 100
SUFFIX = "ASGI_IPC_PREFIX_SUFFIX"  # environment variable, see `full_prefix`
_NAME = "asgi_ipc."  # what the names of all segments begin with


class Paths:
    """The names that follow from a full prefix. Raises InvalidOption for one that cannot be."""

    def __init__(self, prefix: str) -> None:
        if not issubclass(type(prefix), str) or not re.fullmatch(r"[a-zA-Z0-9._-]+", prefix):
            raise InvalidOption(
                f"prefix {prefix!r:.120} must be a str of ASCII letters, digits, '-', '_' and '.', "
                "and not empty"
            )
        if prefix.endswith(".d"):
            raise InvalidOption(
                f"prefix {prefix!r:.120} must not end in '.d', like the directory beside the "
                "segment of another prefix; choose another prefix"
            )
        if len(prefix) > MAX_PREFIX:
            raise InvalidOption(
                f"prefix {prefix!r:.120} has {len(prefix)} characters; at most {MAX_PREFIX} are "
                "allowed"
            )
        name = _NAME + prefix
        # macOS allows 31 characters in the name of a segment, and shows it nowhere as a file.
        self.shows = os.path.isdir(SHM)
        self.lacking = NEEDED and not self.shows
        if not self.shows:
            name = _NAME + sha256(prefix.encode()).hexdigest()[:16]
        self.prefix = prefix
        self.segment = f"/{name}"
        self.file = f"{SHM}/{name}"  # the segment, where `shows`
        self.directory = os.path.join(SHM if self.shows else "/tmp", f"{name}.d")
        self.attach_lock = os.path.join(self.directory, "attach.lock")
        self.section_lock = os.path.join(self.directory, "section.lock")
        self.members = os.path.join(self.directory, "members")


def full_prefix(prefix: str) -> str:
    """Return the prefix that names the shared memory: `prefix` and what the environment adds.

    Tests set the variable, for themselves and for every process that they start, so that they
    cannot reach the layers of a program that runs with the same settings.
    """
    return prefix + os.environ.get(SUFFIX, "")


def prefixes() -> list[str]:
    """List the prefixes that have a segment on this machine, of all users, in order.

    Where the environment adds a suffix: the prefixes with that suffix, shown without it. Empty on
    macOS, which does not list its shared memory.
    """
    return _named(lambda entry: entry.is_file(follow_symlinks=False), "")


def remains() -> list[str]:
    """List the prefixes that have a directory and no segment, like `prefixes`."""
    with_directory = _named(lambda entry: entry.is_dir(follow_symlinks=False), ".d")
    return [one for one in with_directory if not os.path.lexists(Paths(full_prefix(one)).file)]


def _named(kind: Callable[[os.DirEntry[str]], bool], ending: str) -> list[str]:
    """The prefixes in the names of what is of a `kind` in shared memory."""
    found = []
    ending = os.environ.get(SUFFIX, "") + ending
    with contextlib.suppress(OSError), os.scandir(SHM) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(_NAME) and name.endswith(ending):
                prefix = name[len(_NAME) : len(name) - len(ending)]
                with contextlib.suppress(InvalidOption, OSError):
                    if kind(entry):
                        found.append(Paths(prefix).prefix)
    return sorted(found)
