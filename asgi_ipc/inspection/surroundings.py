"""What is or could go wrong with the machine that runs the layers, and the remedies: shared memory,
systemd, limits, containers, leftovers. The part of `diagnosis` that needs no layer; it only looks.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import resource
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..segment.lock import robust_mutexes
from ..segment.paths import SHM, Paths, full_prefix, remains
from ..segment.procfs import user_name
from ..segment.refusals import READ_ONLY
from ..statistics import size
from ..store import native

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_DOCKERS_DEFAULT = 64 << 20  # bytes of /dev/shm in a container
_SMALLEST = 1 << 20  # bytes: what a new segment needs, and some more
_FEW_DESCRIPTORS = 1024


@dataclass(frozen=True)
class Finding:
    """The result of one check. `prefix` is "" for the machine as a whole."""

    level: str  # OK, WARNING or PROBLEM
    prefix: str
    subject: str
    text: str
    remedy: str = ""


def machine_findings(owners: Iterable[int]) -> Iterator[Finding]:
    yield from shared_memory()
    for uid in sorted(owners):
        yield remove_ipc(uid)
    yield descriptors()
    yield container()
    yield implementation()
    yield from leftovers()
    if not robust_mutexes():
        yield Finding(
            WARNING,
            "",
            "lock",
            "this platform has no robust mutexes: layers use a lock file, which is slower",
        )


def implementation() -> Finding:
    """Whether send and receive are compiled, for the Python that runs this."""
    subject = "implementation"
    if native.LOADED:
        return Finding(OK, "", subject, "send and receive are compiled, for this Python")
    remedy = "install a wheel for this platform, or a C compiler, and then the package again"
    return Finding(
        OK,
        "",
        subject,
        f"send and receive are pure Python, for this Python: {native.why_not}",
        remedy if native.could_be_built else "",
    )


def shared_memory() -> Iterator[Finding]:
    """Size, free space and permissions of /dev/shm."""
    subject = "shared memory"
    try:
        status = os.statvfs(SHM)
    except OSError as error:
        yield Finding(
            PROBLEM, "", subject, f"{SHM}: {error.strerror}", "mount a tmpfs there, with mode 1777"
        )
        return
    whole, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    figures = f"{SHM} has {size(whole)}, of which {size(free)} are free"
    if free < _SMALLEST:
        yield Finding(
            PROBLEM,
            "",
            subject,
            f"{figures}: another layer does not fit, and senders get ChannelFull",
            "remove unused layers (asgi-ipc destroy --unused), or enlarge it "
            "(docker run --shm-size=256m, mount -o remount,size=...)",
        )
    elif whole <= _DOCKERS_DEFAULT:
        yield Finding(
            WARNING,
            "",
            subject,
            f"{figures}: less than the 100 MiB of messages that a layer may hold by default "
            "(Docker's default is 64 MB); senders get ChannelFull when it is full",
            "docker run --shm-size=256m, or lower message_memory",
        )
    else:
        yield Finding(OK, "", subject, figures)
    if status.f_flag & os.ST_RDONLY:
        text, _, remedy = READ_ONLY.partition(". ")
        yield Finding(PROBLEM, "", subject, text, remedy)
    elif not os.access(SHM, os.W_OK | os.X_OK):
        mode = stat.S_IMODE(os.stat(SHM).st_mode)
        yield Finding(
            PROBLEM,
            "",
            subject,
            f"{user_name(os.geteuid())} cannot write to {SHM}, which has mode {mode:#o}",
            as_owner(f"chmod 1777 {SHM}", 0)
            if mode & 0o003 != 0o003
            else "find out what forbids it: a security module, a sandbox or a user namespace",
        )


def remove_ipc(uid: int, root: Path = Path("/")) -> Finding:
    """Whether systemd removes the shared memory of a user when the last session ends."""
    subject = f"RemoveIPC for {user_name(uid)}"
    if not (root / "run/systemd/system").is_dir():
        return Finding(OK, "", subject, "systemd is not running here")
    if uid <= _last_system_uid(root):
        return Finding(OK, "", subject, "systemd keeps the shared memory of system users")
    value = "yes"  # systemd's default
    for file in _logind_files(root):
        parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read_string(file.read_text(encoding="utf-8"))
            value = parser.get("Login", "RemoveIPC", fallback=value) or value
    if value.strip().lower() in ("no", "false", "off", "0", "n", "f"):
        return Finding(OK, "", subject, "it is off")
    if (root / "var/lib/systemd/linger" / user_name(uid)).exists():
        return Finding(OK, "", subject, "it is on, but lingering is enabled for this user")
    return Finding(
        WARNING,
        "",
        subject,
        f"systemd removes the shared memory of {user_name(uid)} when the last session of that user "
        "ends, even if processes still use it",
        "set RemoveIPC=no in /etc/systemd/logind.conf, or loginctl enable-linger "
        f"{user_name(uid)}, or run the processes as a system user",
    )


def _logind_files(root: Path) -> list[Path]:
    """The configuration files of logind; later ones override earlier ones."""
    drop_ins: dict[str, Path] = {}
    for folder in ("usr/lib", "run", "etc"):
        for file in (root / folder / "systemd/logind.conf.d").glob("*.conf"):
            drop_ins[file.name] = file
    return [root / "etc/systemd/logind.conf", *(drop_ins[name] for name in sorted(drop_ins))]


def _last_system_uid(root: Path) -> int:
    with contextlib.suppress(OSError):
        text = (root / "etc/login.defs").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^\s*SYS_UID_MAX\s+(\d+)", text, re.MULTILINE)
        if found:
            return int(found[1])
    return 999


def descriptors() -> Finding:
    """How many files a process may open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < _FEW_DESCRIPTORS:
        return Finding(
            WARNING,
            "",
            "descriptors",
            f"a process started here may open {limit} files: it needs one for each of its threads "
            "and loops that wait, and one for each that it wakes",
            f"ulimit -n {_FEW_DESCRIPTORS * 4}, or LimitNOFILE= in its systemd unit",
        )
    return Finding(OK, "", "descriptors", f"a process started here may open {limit} files")


def container() -> Finding:
    """Whether this is a container, which by default does not share layers with others."""
    inside = os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")
    if not inside:
        with contextlib.suppress(OSError), open("/proc/1/cgroup") as file:
            inside = bool(re.search(r"docker|kubepods|containerd|lxc", file.read()))
    if not inside:
        return Finding(OK, "", "container", "this does not look like one")
    return Finding(
        OK,
        "",
        "container",
        f"this is one: it shares layers only with containers that share {SHM} and the PID "
        "namespace (docker run --ipc=container:NAME --pid=container:NAME)",
    )


def as_owner(command: str, uid: int) -> str:
    """A command as this user has to give it, so that it runs as another user. Not even root may
    change the layer of another user."""
    if uid == os.geteuid():
        return command
    if os.geteuid() == 0:
        return f"sudo -u {_user(uid)} {command}"
    return f"as {user_name(uid)}: {command}"


def _user(uid: int) -> str:
    """A user as sudo takes it."""
    name = user_name(uid)
    return f"'#{uid}'" if name == str(uid) else name


def leftovers() -> Iterator[Finding]:
    """Objects in shared memory that no process will use again."""
    with contextlib.suppress(OSError):
        names = set(os.listdir(SHM))
        old = [
            f"{name}-messages"
            for name in sorted(name[: -len("-messages")] for name in names if "sem." not in name)
            if f"{name}-messages" in names and f"sem.{name}-messages" in names
        ]
        for name in old:
            prefix = name[: -len("-messages")]
            pair = f"{SHM}/{prefix}-{{messages,groups}} {SHM}/sem.{prefix}-{{messages,groups}}"
            yield Finding(
                WARNING,
                prefix,
                "leftovers",
                "asgi_ipc 1.x left this shared memory behind",
                "after its processes have ended: "
                + as_owner(f"rm {pair}", 0 if not os.geteuid() else _uid(f"{SHM}/{name}")),
            )
    for prefix in remains():
        owner = _uid(Paths(full_prefix(prefix)).directory)
        yield Finding(
            WARNING,
            prefix,
            "leftovers",
            "there is the directory that lies beside a segment, and no segment: that was removed, "
            "or could not be created",
            "the next process repairs that; to remove it now: "
            + as_owner(f"asgi-ipc destroy --prefix {prefix}", owner),
        )


def _uid(path: str) -> int:
    """The owner of a file; this user if it is gone."""
    try:
        return os.lstat(path).st_uid
    except OSError:
        return os.geteuid()
