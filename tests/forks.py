"""Forked processes for the tests of what several processes share: they say what they have got to,
are told to go on, and are killed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from .waiting import LIVENESS

NOBODY = 65534  # a uid that is not ours

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="lacking: the rights of root")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="lacking: Linux")


class Line:
    """One end of the line between a test and its child."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def say(self, value: Any = None) -> None:
        self._connection.send((True, value))

    def hear(self) -> Any:
        """What the other end says next; fails if it says nothing, or that it failed."""
        assert self._connection.poll(LIVENESS), "nothing was said"
        try:
            fine, value = self._connection.recv()
        except EOFError:
            fine, value = False, "the process at the other end has crashed"
        assert fine, value
        return value

    def close(self) -> None:
        self._connection.close()


class Child(Line):
    """A forked process that runs ``function(line)`` and says last what that returned."""

    def __init__(self, function: Callable[[Line], Any]) -> None:
        mine, its = Pipe()
        super().__init__(mine)
        with warnings.catch_warnings():
            # Python 3.12 warns of other threads, as which it counts pytest's watchdog.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid:
            its.close()
            return
        try:
            mine.close()
            its.send((True, function(Line(its))))
        except BaseException:
            with contextlib.suppress(OSError):
                its.send((False, traceback.format_exc()))
        finally:
            os._exit(0)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; after SIGKILL the process is gone, after SIGSTOP it stands still."""
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.wait()
        elif number == signal.SIGSTOP:
            stands_still(self.pid)

    def wait(self) -> None:
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0


def state_of(pid: int) -> str:
    """R, S, T, Z and so on, as in /proc."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def stands_still(pid: int) -> None:
    """Wait until a child is stopped: a signal may take its time."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it has ended"


@contextlib.contextmanager
def child(function: Callable[[Line], Any]) -> Iterator[Child]:
    """A forked process, which does not outlive the block."""
    made = Child(function)
    try:
        yield made
    finally:
        if made.pid:
            made.kill()
        made.close()


@contextlib.contextmanager
def children(functions: list[Callable[[Line], Any]]) -> Iterator[list[Child]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(child(function)) for function in functions]


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns in a process of its own."""
    with child(lambda line: function()) as made:
        return made.hear()


def rests(line: Line) -> None:
    """Does nothing until it is told to go on."""
    line.say("there")
    line.hear()


@contextlib.contextmanager
def bounded(seconds: float = LIVENESS) -> Iterator[None]:
    """Fails the test if the block hangs, also in a loop that no timeout of its own ends."""

    def fail(number: int, frame: Any) -> None:
        pytest.fail(f"still not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- namespaces of one's own ----------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_PIDS, _NEW_TIME = 0x20000, 0x20000000, 0x80
_RECURSIVE, _PRIVATE, _REMOUNT, _READ_ONLY = 0x4000, 0x40000, 0x20, 0x1


def unshare_pids() -> None:
    """The next children of this process get a PID namespace of their own."""
    _call(_libc.unshare, _NEW_PIDS)


def unshare_time() -> None:
    """The same with a time namespace."""
    _call(_libc.unshare, _NEW_TIME)


@contextlib.contextmanager
def another_clock(offset: int) -> Iterator[None]:
    """In a child with one thread: move to a time namespace whose clock is `offset` seconds ahead,
    and back."""

    def make(line: Line) -> None:
        unshare_time()
        try:
            with open("/proc/self/timens_offsets", "w") as offsets:
                offsets.write(f"monotonic {offset} 0")
        except OSError as error:
            raise Lacking(str(error)) from None
        with child(rests) as inhabitant:
            line.say(inhabitant.pid)
            line.hear()

    with child(make) as made, open("/proc/self/ns/time") as home:
        with open(f"/proc/{made.hear()}/ns/time") as there:
            _call(_libc.setns, there.fileno(), _NEW_TIME)
            try:
                yield
            finally:
                _call(_libc.setns, home.fileno(), _NEW_TIME)


def mount_small_shared_memory(size: int, *more: str) -> None:
    """In a child: a /dev/shm of `size` bytes that nobody else sees; `more` options of tmpfs."""
    _unshare_mounts()
    options = ",".join((f"size={size}", *more)).encode()
    _call(_libc.mount, b"tmpfs", b"/dev/shm", b"tmpfs", 0, options)


def make_shared_memory_read_only() -> None:
    """In a child that has mounted a /dev/shm of its own."""
    _call(_libc.mount, b"tmpfs", b"/dev/shm", b"tmpfs", _REMOUNT | _READ_ONLY, None)


def hide_devices() -> None:
    """In a child: an empty /dev, so that there is no /dev/shm."""
    _unshare_mounts()
    _call(_libc.mount, b"tmpfs", b"/dev", b"tmpfs", 0, None)


def _unshare_mounts() -> None:
    _call(_libc.unshare, _NEW_MOUNTS)
    _call(_libc.mount, b"none", b"/", None, _RECURSIVE | _PRIVATE, None)


def forbid(call: int, answer: int = errno.EPERM, commands: tuple[int, ...] = ()) -> None:
    """In a child: have the kernel answer a system call of x86-64 as a sandbox does that forbids it;
    with `commands`, only where its second argument is one of them."""
    if platform.machine() != "x86_64":
        raise Lacking("x86-64")
    load, equal, end = 0x20, 0x15, 0x06
    allow, deny = (end, 0, 0, 0x7FFF0000), (end, 0, 0, 0x50000 | answer)
    program = [(load, 0, 0, 0), (equal, 1, 0, call), allow]
    if commands:
        program += [(load, 0, 0, 24)]  # where the kernel shows the second argument
        for number in commands:
            program += [(equal, 0, 1, number), deny]
    program += [allow if commands else deny]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    _call(_libc.prctl, no_new_privileges, 1, 0, 0, 0)
    _call(_libc.prctl, seccomp, mode_filter, filter_, 0, 0)


def tell_when_the_parent_ends(number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it has ended, and
    perhaps again when the other threads of its process have."""
    parent_death = 1
    _call(_libc.prctl, parent_death, number, 0, 0, 0)


class Lacking(Exception):
    """This machine does not allow what a test needs."""


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments):
        raise Lacking(os.strerror(ctypes.get_errno()))


def or_skip(function: Callable[[], Any]) -> Any:
    """What `function` returns in a process of its own; the test is skipped if that is Lacking."""

    def run() -> Any:
        try:
            return True, function()
        except Lacking as error:
            return False, str(error)

    allowed, value = in_child(run)
    if not allowed:
        pytest.skip(f"lacking: what a process may do to itself here ({value})")
    return value


# PyDLL, which keeps the GIL: in a child no thread is left that could release it.
_fork_in_c = ctypes.PyDLL(None).fork


def fork_in_c() -> int:
    """Fork without a fork handler of Python. If a thread asks for the GIL at that moment, CPython's
    main thread hands it over, and in the child waits for ever until it was taken."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(10 * LIVENESS)  # before that, no thread asks
    try:
        time.sleep(0.02)  # one that has asked already gets it now
        return int(_fork_in_c())
    finally:
        sys.setswitchinterval(before)
