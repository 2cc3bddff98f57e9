"""What /proc and the user database say about processes and namespaces.

Every function answers and never raises: a process may end at any time, and macOS has no /proc.
This module must not import the rest of the package.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator


def pids() -> list[int]:
    """All processes of this PID namespace, in order."""
    try:
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return []


def command_line(pid: int) -> str:
    """The command line of a process of this PID namespace; "" if it is unknown."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return printable(file.read().replace(b"\0", b" ").decode(errors="replace").strip())
    except OSError:
        return ""


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or by a debugger."""
    return _state(pid) in (b"T", b"t")


def _state(thread: int) -> bytes:
    """The letter for what a thread is doing; empty if it is unknown."""
    try:
        with open(f"/proc/{thread}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return b""


def process_of(thread: int) -> int:
    """Process id of a thread id; 0 if there is no such thread."""
    try:
        with open(f"/proc/{thread}/status") as file:
            for line in file:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def thread_exists(thread: int) -> bool:
    """Whether a thread with this id lives, of any process."""
    try:
        os.kill(thread, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def mappings_of(pid: int, path: str) -> Iterator[tuple[int, bool]]:
    """The files at `path` that a process has mapped, as (inode, whether it was removed)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="replace") as file:
        for line in file:
            parts = line.split(None, 5)
            if len(parts) == 6:
                name, removed, _ = parts[5].rstrip("\n").partition(" (deleted)")
                if name == path:
                    yield int(parts[4]), bool(removed)


def mapped_at(*addresses: int) -> list[tuple[str, int, int] | None]:
    """What this process has at some addresses: (device, inode, offset) in a file that is mapped;
    None for other memory, and where that is unknown."""
    found: list[tuple[str, int, int] | None] = [None] * len(addresses)
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/maps", errors="replace") as file,
    ):
        for line in file:
            extent, _, offset, device, inode = line.split(None, 5)[:5]
            start, end = (int(part, 16) for part in extent.split("-"))
            for index, address in enumerate(addresses):
                if start <= address < end and inode != "0":
                    found[index] = device, int(inode), int(offset, 16) + address - start
    return found


def open_files_of(pid: int) -> tuple[int, int]:
    """The number of files that a process has open, and its limit; (0, 0) if they cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/limits") as file:
            for line in file:
                if line.startswith("Max open files"):
                    return used, int(line.split()[3])
    return 0, 0


def is_dead(thread: int) -> bool:
    """Whether a thread has ended, with certainty. A zombie has: the kernel has done what it does
    when a thread ends."""
    return not thread_exists(thread) or (shows_threads() and _state(thread) in (b"Z", b"X"))


def shows_threads() -> bool:
    """Whether /proc shows the threads of this PID namespace by their ids."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def has_mapped(thread: int, inode: int) -> bool:
    """Whether the process of a thread may have a file in its memory: False only if /proc shows that
    it does not. Other devices may have a file with that number, which does not matter."""
    try:
        # Not that of the process: its main thread may have ended, and then it shows nothing.
        with open(f"/proc/{thread}/maps", "rb") as file:
            wanted = b"%d" % inode
            return any(line.split(None, 5)[4] == wanted for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return not is_dead(thread)
    except (OSError, IndexError):
        return True


def in_locks(path: str) -> str:
    """What /proc/locks calls a file. Files of other file systems may have the same inode number."""
    status = os.stat(path)
    device = status.st_dev
    return f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"


def flock_holder(path: str) -> int:
    """Process id of the holder of the flock on a file; 0 if there is none or it is unknown."""
    try:
        wanted = in_locks(path)
        with open("/proc/locks") as file:
            for line in file:
                parts = line.split()
                if parts[1] == "FLOCK" and parts[5] == wanted:
                    return int(parts[4])
    except (OSError, IndexError, ValueError):
        pass
    return 0


def namespace(kind: str) -> int:
    """Inode of the namespace that this process is in ("pid", "time"); 0 where there are none."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


def printable(text: str) -> str:
    """Return `text` without characters that control a terminal: other users chose it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def user_name(uid: int) -> str:
    """The name of a user; its number as text if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """The name of a group; its number as text if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def group_of_name(name: str) -> int | None:
    """The gid of a group; None if there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None
