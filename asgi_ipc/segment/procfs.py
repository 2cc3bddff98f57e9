"""What /proc and the user database tell of other processes. It answers and never raises: a process
may end at any time, and macOS has no /proc. A leaf."""

from __future__ import annotations

import pwd


def command_line(pid: int) -> str:
    """The command line of a process of this PID namespace; "" if it cannot be told."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return printable(file.read().replace(b"\0", b" ").decode(errors="replace").strip())
    except OSError:
        return ""


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or by a debugger."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def printable(text: str) -> str:
    """`text` without what would control a terminal: others chose it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
