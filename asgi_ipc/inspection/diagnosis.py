"""What is or could go wrong with the layers of this machine, and the remedies: for ``asgi-ipc
doctor``. It only looks, and takes a lock for nothing but the copy that it verifies (see `locked`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from ..errors import IncompatibleSegment, IPCError, LockLost, LockTimeout, NoSuchLayer
from ..options import Options
from ..segment.cgroup import full_cgroup
from ..segment.opening import open_existing
from ..segment.paths import SHM, Paths, full_prefix, prefixes
from ..segment.procfs import command_line, is_stopped, mappings_of, open_files_of, pids, user_name
from ..statistics import UNREAD_AFTER, Channel, size
from ..store import layout as at
from . import locked
from .snapshot import Snapshot
from .surroundings import OK, PROBLEM, WARNING, Finding, as_owner, machine_findings
from .view import View, attached_to

_NAMED = 5  # things of one kind that a finding names
_MUCH = 0.9  # share of a limit above which a warning is due
_LOOKS, _BETWEEN = 6, 0.05  # looks at who holds the lock, and seconds between them
_PATIENCE = 2.0  # seconds to wait for the lock


def diagnose(only: str | None = None, group_expiry: float = Options.group_expiry) -> list[Finding]:
    """The findings for this machine and all its layers, or only one. `group_expiry`: the option of
    the layers, in seconds, which their segments do not hold. Raises NoSuchLayer."""
    if only is not None:
        open_existing(Paths(full_prefix(only)))
    wanted = prefixes() if only is None else [only]
    found = list(machine_findings({_owner(prefix) for prefix in wanted} | {os.geteuid()}))
    for prefix in wanted:
        with contextlib.suppress(NoSuchLayer):  # it was removed meanwhile
            found += _layer(prefix, group_expiry)
    return found


# -- one layer ------------------------------------------------------------------------------------


def _layer(prefix: str, group_expiry: float = Options.group_expiry) -> Iterator[Finding]:
    attached = attached_to(Paths(full_prefix(prefix)))
    destroy = as_owner(f"asgi-ipc destroy --prefix {prefix}", _owner(prefix))
    try:
        view = View(prefix)
        snapshot = Snapshot(view)
    except NoSuchLayer:
        raise
    except IPCError as error:
        if isinstance(error, PermissionError):
            owner = user_name(_owner(prefix))
            text = f"it belongs to user {owner}, and this user cannot inspect it"
            remedy = "to check it, run this as " + " or as ".join(dict.fromkeys((owner, "root")))
            yield Finding(OK, prefix, "segment", text, remedy)
            return
        if attached and isinstance(error, IncompatibleSegment):
            remedy = "stop the processes of one of the two versions, or give them another prefix"
        elif attached:
            remedy = f"stop its processes, then {destroy}"
        else:
            remedy = f"the next process replaces it; to remove it now: {destroy}"
        yield Finding(PROBLEM if attached else WARNING, prefix, "segment", str(error), remedy)
        return
    if not attached:
        pending = snapshot.totals().pending
        yield Finding(
            WARNING,
            prefix,
            "processes",
            f"no process is attached; {size(view.reserved())} reserved, "
            + (f"{pending} messages pending" if pending else "no message waits"),
            f"if the layer is no longer used: {destroy}",
        )
    else:
        yield Finding(OK, prefix, "processes", f"{len(attached)} attached")
    yield from _room(view, snapshot)
    yield from _processes(view, attached)
    yield from _state(view, snapshot)
    yield from _channels(snapshot)
    abandoned = snapshot.stats().abandoned
    if abandoned:
        yield Finding(
            WARNING,
            prefix,
            "memberships",
            f"{abandoned} abandoned: for ten times expiry nothing was received on their channels",
            "call group_discard when a consumer ends; if handlers take so long, raise expiry",
        )
    ending = snapshot.ending(group_expiry)
    if ending:
        named = ", ".join(
            f"{one.channel} of group {one.group} in {one.expires:.0f} s" for one in ending[:_NAMED]
        )
        more = f" and {len(ending) - _NAMED} more" if len(ending) > _NAMED else ""
        yield Finding(
            WARNING,
            prefix,
            "memberships",
            f"within a tenth of group_expiry (of {group_expiry:g} s, unless more is left of one) "
            f"these end: {named}{more}",
            "renew each with group_add(group, channel), best at half of group_expiry; if the "
            "layer has another group_expiry, give it as --group-expiry",
        )


def _room(view: View, snapshot: Snapshot) -> Iterator[Finding]:
    """Whether the layer can grow to its limits, and whether it is close to them."""
    prefix, stats = view.prefix, snapshot.stats()
    memory = stats.memory
    log = view.layout.log, view.layout.log_end, snapshot.header[at.S_MARK]
    missing = max(log[1] - max(log[0], log[2]), 0) * at.WORD  # until message_memory is the limit
    full = full_cgroup(missing)
    with contextlib.suppress(OSError):
        status = os.statvfs(SHM)
        free = status.f_bavail * status.f_frsize
        level, text = OK, f"{size(memory.in_use)} of {size(memory.limit)} in use"
        remedy = ""
        if memory.in_use > memory.limit * _MUCH:
            level = WARNING
            remedy = "add readers, or raise message_memory in all processes"
        elif free < missing:
            level = WARNING
            text += f", but {SHM} has only {size(free)} free: senders get ChannelFull before that"
            remedy = f"enlarge {SHM} (docker run --shm-size=...), or lower message_memory"
        elif full is not None:
            level = WARNING
            text += (
                f", but the memory limit of the cgroup {full.folder}, {size(full.limit)}, leaves "
                "less than that: senders get ChannelFull before"
            )
            remedy = (
                "raise it (docker run --memory, MemoryMax= of a systemd unit), or lower "
                "message_memory"
            )
        yield Finding(level, prefix, "memory", text, remedy)
    for what, used, limit, remedy in (
        ("memberships", stats.memberships, stats.memberships_limit, "raise group_memory"),
        ("processes", stats.processes, at.MAX_PROCESSES, "use several prefixes"),
        ("waiters", snapshot.waiters(), at.MAX_WAITERS - 1, "use several prefixes"),
    ):
        if used > limit * _MUCH:
            yield Finding(WARNING, prefix, "limits", f"{used} of {limit} {what} in use", remedy)


def _processes(view: View, attached: dict[int, int]) -> Iterator[Finding]:
    """Processes that are stopped or short of descriptors, or that use another segment."""
    prefix = view.prefix
    hidden = sum(1 for pid in attached.values() if not pid)
    if hidden:
        yield Finding(
            OK,
            prefix,
            "containers",
            f'{hidden} attached from another PID namespace, which lock="file" allows',
        )
    for pid in sorted(set(attached.values()) - {0}):
        if is_stopped(pid):
            yield Finding(
                WARNING,
                prefix,
                "processes",
                f"{_process(pid)} is stopped",
                f"kill -CONT {pid}",
            )
        used, limit = open_files_of(pid)
        if limit and used > limit * _MUCH:
            yield Finding(
                WARNING,
                prefix,
                "descriptors",
                f"{_process(pid)} has {used} of at most {limit} files open",
                "raise its limit (ulimit -n, or LimitNOFILE= in its systemd unit)",
            )
    wanted = view.paths.file
    inode = os.fstat(view.fd).st_ino
    for pid in pids():
        for other, removed in mappings_of(pid, wanted):
            if other != inode:
                yield Finding(
                    PROBLEM,
                    prefix,
                    "containers",
                    f"{_process(pid)} uses "
                    + (
                        "a segment of this prefix that was removed"
                        if removed
                        else f"another segment of the same name: it has its own {SHM}"
                    ),
                    "it notices at its next call; if it makes none, restart it"
                    if removed
                    else f"let its container share this {SHM}: docker run --ipc=container:NAME",
                )
                break


def _state(view: View, snapshot: Snapshot) -> Iterator[Finding]:
    """The lock, and the invariants of what it protects."""
    prefix = view.prefix
    fault = view.header.sharing_fault()
    if fault is not None:
        text = f"the lock cannot be checked, because the segment {fault.reason}"
        yield Finding(WARNING, prefix, "namespaces", text, fault.remedy)
        return
    holder = snapshot.holder()
    for _ in range(_LOOKS if holder else 0):
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
            f"{_process(holder)} holds the lock and does not release it"
            + (": it is stopped" if stopped else ""),
            f"kill -CONT {holder}, or end it" if stopped else "find out what it does, or end it",
        )
        return
    try:
        wrong = locked.complaints(view, _PATIENCE)
    except (LockTimeout, LockLost) as error:
        yield Finding(PROBLEM, prefix, "lock", str(error))
        return
    except IPCError as error:
        yield Finding(WARNING, prefix, "lock", str(error))
        return
    yield Finding(OK, prefix, "lock", "it is free")
    if damage := locked.damage(wrong):
        yield Finding(
            PROBLEM,
            prefix,
            "invariants",
            "; ".join(damage[:3]),
            as_owner(f"asgi-ipc flush --prefix {prefix}", _owner(prefix)),
        )
    else:
        yield Finding(OK, prefix, "invariants", "; ".join(wrong) or "all hold")


def _channels(snapshot: Snapshot) -> Iterator[Finding]:
    """Channels that are full, and channels without readers."""
    prefix, found = snapshot.view.prefix, snapshot.channels()
    full = [channel for channel in found if channel.fill >= 1]
    if full:
        yield Finding(
            WARNING,
            prefix,
            "channels",
            f"at capacity: {_named(full)}",
            "their readers are too slow or missing: add readers, or raise the capacity",
        )
    unread = [
        channel
        for channel in found
        if channel.oldest > UNREAD_AFTER and not (channel.waiting or channel.owner)
    ]
    if unread:
        yield Finding(
            WARNING,
            prefix,
            "channels",
            f"messages pending for more than {UNREAD_AFTER:g} s, and no process waits for them: "
            f"{_named(unread)}",
            "start a worker for these channels, unless one is just busy",
        )
    if not full and not unread:
        yield Finding(OK, prefix, "channels", "none is full or unread")


# -- shared by these ------------------------------------------------------------------------------


def _process(pid: int) -> str:
    return f"process {pid} ({command_line(pid):.60})"


def _owner(prefix: str) -> int:
    try:
        return os.stat(Paths(full_prefix(prefix)).file).st_uid
    except OSError:
        return os.geteuid()


def _named(channels: list[Channel], most: int = _NAMED) -> str:
    names = ", ".join(channel.name for channel in channels[:most])
    return names + (f" and {len(channels) - most} more" if len(channels) > most else "")
