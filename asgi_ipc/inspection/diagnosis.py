"""What could go wrong with the layers of this machine, and how to mend it. `asgi-ipc doctor` shows
it. It only looks; the one thing that it takes a lock for is the copy that `verify` is run on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from ..attachment.process import attached_processes
from ..errors import IncompatibleSegment, IPCError, LockLost, LockTimeout, NoSuchLayer
from ..segment.cgroup import cgroup_allows
from ..segment.opening import open_existing
from ..segment.paths import SHM, Paths, full_prefix, prefixes
from ..segment.procfs import command_line, is_stopped
from ..statistics import Channel
from ..store.layout import MAX_PROCESSES, MAX_WAITERS
from . import locked
from .snapshot import Snapshot
from .surroundings import OK, PROBLEM, WARNING, Finding, machine_findings, mib
from .view import View

_MUCH = 0.9  # of a limit, from which on it is worth a word
_UNREAD = 10.0  # seconds after which a message should have met a reader
_GLANCES, _BETWEEN = 6, 0.05  # looks at who holds the lock, and seconds between them
_SOON = 2.0  # seconds to wait for the lock


def diagnose(only: str | None = None) -> list[Finding]:
    """All findings for this machine, and for its layers, or one of them. Raises NoSuchLayer."""
    if only is not None:
        open_existing(Paths(full_prefix(only)))
    wanted = prefixes() if only is None else [only]
    found = list(machine_findings({_owner(prefix) for prefix in wanted} | {os.geteuid()}))
    for prefix in wanted:
        with contextlib.suppress(NoSuchLayer):  # it went away meanwhile
            found += _layer(prefix)
    return found


# -- one layer ------------------------------------------------------------------------------------


def _layer(prefix: str) -> Iterator[Finding]:
    paths = Paths(full_prefix(prefix))
    try:
        attached = attached_processes(paths.members)
    except OSError:
        attached = {}
    destroy = f"asgi-ipc destroy --prefix {prefix}"
    try:
        view = View(prefix)
        snapshot = Snapshot(view)
    except NoSuchLayer:
        raise
    except IPCError as error:
        if attached and isinstance(error, IncompatibleSegment):
            remedy = "stop the processes of one of the two versions, or give them other prefixes"
        elif isinstance(error, PermissionError):
            remedy = "run this as its owner or as root"
        else:
            remedy = (
                "" if attached else "the next process replaces it; or "
            ) + f"{'stop its processes, then ' if attached else ''}{destroy}"
        level = PROBLEM if attached or isinstance(error, PermissionError) else WARNING
        yield Finding(level, prefix, "segment", str(error), remedy)
        return
    if not attached:
        yield Finding(
            WARNING,
            prefix,
            "processes",
            f"nobody is attached; {mib(view.reserved())} are reserved and "
            f"{snapshot.totals().messages} messages wait",
            f"if nobody will come back: {destroy}",
        )
    else:
        yield Finding(OK, prefix, "processes", f"{len(attached)} are attached")
    yield from _room(view, snapshot)
    yield from _processes(view, attached)
    yield from _state(view, snapshot)
    yield from _channels(snapshot)


def _room(view: View, snapshot: Snapshot) -> Iterator[Finding]:
    """Whether the layer can grow to its limits, and how far from them it is."""
    prefix, stats = view.prefix, snapshot.stats()
    memory = stats.memory
    missing = memory.limit - memory.in_use
    with contextlib.suppress(OSError):
        status = os.statvfs(SHM)
        free = status.f_bavail * status.f_frsize
        level, text = OK, f"{mib(memory.in_use)} of {mib(memory.limit)} are in use"
        remedy = ""
        if memory.in_use > memory.limit * _MUCH:
            level = WARNING
            remedy = "add readers, or raise message_memory for all processes"
        elif free < missing - memory.reserved:
            level = WARNING
            text += f", and {SHM} has only {mib(free)} left: senders get ChannelFull before that"
            remedy = (
                "make it larger (docker run --shm-size=...), or give the layer a smaller "
                "message_memory"
            )
        elif not cgroup_allows(max(missing - memory.reserved, 0)):
            level = WARNING
            text += ", and the memory limit of this container (cgroup) is nearer than that"
            remedy = "raise the memory limit, or give the layer a smaller message_memory"
        yield Finding(level, prefix, "memory", text, remedy)
    for what, used, limit, remedy in (
        ("memberships", stats.memberships, stats.memberships_limit, "raise group_memory"),
        ("processes", stats.processes, MAX_PROCESSES, "use several prefixes"),
        ("waiting threads and loops", snapshot.waiters(), MAX_WAITERS - 1, "use several prefixes"),
    ):
        if used > limit * _MUCH:
            yield Finding(WARNING, prefix, "limits", f"{used} of {limit} {what}", remedy)


def _processes(view: View, attached: dict[int, int]) -> Iterator[Finding]:
    """What is wrong with the processes of a layer, and who takes part in another of its name."""
    prefix = view.prefix
    hidden = sum(1 for pid in attached.values() if not pid)
    if hidden:
        yield Finding(
            OK,
            prefix,
            "containers",
            f'{hidden} of its processes are in another PID namespace, which lock="file" allows',
        )
    for pid in sorted(set(attached.values()) - {0}):
        if is_stopped(pid):
            yield Finding(
                WARNING,
                prefix,
                "processes",
                f"process {pid} ({command_line(pid):.60}) is stopped",
                f"kill -CONT {pid}",
            )
        used, limit = _descriptors_of(pid)
        if limit and used > limit * _MUCH:
            yield Finding(
                WARNING,
                prefix,
                "descriptors",
                f"process {pid} ({command_line(pid):.60}) has {used} of {limit} files open",
                "raise its limit (ulimit -n, or LimitNOFILE= in its unit)",
            )
    wanted = view.paths.file
    inode = os.fstat(view.fd).st_ino
    for pid in _pids():
        for other, removed in _mapped(pid, wanted):
            if other != inode:
                yield Finding(
                    PROBLEM,
                    prefix,
                    "containers",
                    f"process {pid} ({command_line(pid):.60}) uses "
                    + (
                        "a segment of this prefix that was removed"
                        if removed
                        else "another segment of this name: it has a /dev/shm of its own"
                    ),
                    "it notices with its next call; else restart it"
                    if removed
                    else "let its container share this one's: docker run --ipc=container:NAME",
                )
                break


def _state(view: View, snapshot: Snapshot) -> Iterator[Finding]:
    """The lock, and what it protects."""
    prefix = view.prefix
    fault = view.header.sharing_fault()
    if fault is not None:
        text = f"the lock cannot be looked at, because the segment {fault.reason}"
        yield Finding(WARNING, prefix, "namespaces", text, fault.remedy)
        return
    holder = snapshot.holder()
    for _ in range(_GLANCES if holder else 0):
        time.sleep(_BETWEEN)
        if snapshot.holder() != holder:
            holder = 0
            break
    if holder:
        stopped = is_stopped(holder)
        yield Finding(
            PROBLEM,
            prefix,
            "lock",
            f"process {holder} ({command_line(holder):.60}) holds the lock and does not move"
            + (": it is stopped" if stopped else ""),
            f"kill -CONT {holder}, or end it" if stopped else "look what it does, or end it",
        )
        return
    try:
        wrong = locked.complaints(view, _SOON)
    except (LockTimeout, LockLost) as error:
        yield Finding(PROBLEM, prefix, "lock", str(error))
        return
    except IPCError as error:
        yield Finding(WARNING, prefix, "lock", str(error))
        return
    yield Finding(OK, prefix, "lock", "it is free")
    if wrong:
        yield Finding(
            PROBLEM, prefix, "invariants", "; ".join(wrong[:3]), f"asgi-ipc flush --prefix {prefix}"
        )
    else:
        yield Finding(OK, prefix, "invariants", "all hold")


def _channels(snapshot: Snapshot) -> Iterator[Finding]:
    """Channels that are full, and those that nobody reads."""
    prefix, found = snapshot.view.prefix, snapshot.channels()
    full = [channel for channel in found if channel.fill >= 1]
    if full:
        yield Finding(
            WARNING,
            prefix,
            "channels",
            f"full: {_named(full)}",
            "their readers are too slow, or there are none: add readers, or raise the capacity",
        )
    unread = [
        channel
        for channel in found
        if channel.oldest > _UNREAD and not (channel.waiting or channel.owner)
    ]
    if unread:
        yield Finding(
            WARNING,
            prefix,
            "channels",
            f"with messages that wait for more than {_UNREAD:g} s, and nobody in sight who reads: "
            f"{_named(unread)}",
            "start a worker for them; a worker that is busy is not in sight",
        )
    if not full and not unread:
        yield Finding(OK, prefix, "channels", "none is full, and none goes unread")


# -- what all of these use ------------------------------------------------------------------------


def _owner(prefix: str) -> int:
    try:
        return os.stat(Paths(full_prefix(prefix)).file).st_uid
    except OSError:
        return os.geteuid()


def _pids() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return []


def _mapped(pid: int, path: str) -> Iterator[tuple[int, bool]]:
    """The segments at `path` that a process has mapped: (inode, whether it was removed)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as file:
        for line in file:
            parts = line.split(None, 5)
            if len(parts) == 6:
                name, removed, _ = parts[5].rstrip("\n").partition(" (deleted)")
                if name == path:
                    yield int(parts[4]), bool(removed)


def _descriptors_of(pid: int) -> tuple[int, int]:
    """(open, allowed) of another process; zeros where that cannot be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/limits") as file:
            for line in file:
                if line.startswith("Max open files"):
                    return used, int(line.split()[3])
    return 0, 0


def _named(channels: list[Channel], most: int = 5) -> str:
    names = ", ".join(channel.name for channel in channels[:most])
    return names + (f" and {len(channels) - most} more" if len(channels) > most else "")
