"""What the operating system refuses: addresses, file sizes, descriptors, inodes, shared memory
itself. Each time an error of this package says so, with the remedy, and nothing is left behind; and
once the system gives what was lacking, the same layer works."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.errors import ForeignSegment, IPCError, SegmentError
from asgi_ipc.inspection.diagnosis import diagnose
from asgi_ipc.inspection.layers import layers
from asgi_ipc.segment import destroy, opening, refusals
from asgi_ipc.testing import sync as in_process

from ..forks import (
    forbid,
    hide_devices,
    in_child,
    is_root,
    make_shared_memory_read_only,
    mount_small_shared_memory,
    on_linux,
    or_skip,
)

pytestmark = [on_linux, pytest.mark.usefixtures("no_garbage")]

MIB = 1 << 20
MESSAGE = {"n": 1}


def left(prefix: str) -> tuple[list[str], int]:
    """What lies around of a prefix, also where macOS has it, and how many descriptors are open."""
    folders = [folder for folder in ("/dev/shm", "/tmp") if os.path.isdir(folder)]
    names = sorted(name for folder in folders for name in os.listdir(folder) if prefix in name)
    return names, len(os.listdir("/proc/self/fd"))


def refused(layer: IPCChannelLayer) -> str:
    """What each call of a layer says, which leaves nothing behind."""
    calls: list[Callable[[], Any]] = [
        lambda: layer.send("a", MESSAGE),
        lambda: layer.receive(["a"], block=True),
        lambda: layer.group_add("g", "a"),
        lambda: layer.send_group("g", MESSAGE),
        layer.flush,
        layer.stats,
    ]
    before, said = left(layer.prefix), set()
    for call in calls:
        with pytest.raises(SegmentError) as caught:
            call()
        said.add(str(caught.value))
        assert left(layer.prefix) == before
    assert len(said) == 1
    return said.pop()


def works(layer: IPCChannelLayer) -> bool:
    layer.send("a", MESSAGE)
    return layer.receive(["a"]) == ("a", MESSAGE)


@contextlib.contextmanager
def limited(which: int, most: int) -> Any:
    before = resource.getrlimit(which)
    resource.setrlimit(which, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


def only(spare: int) -> Any:
    """No more descriptors than there are, and `spare` ones."""
    taken = [os.open("/", os.O_RDONLY) for _ in range(spare + 1)]
    for number in taken:
        os.close(number)
    return limited(resource.RLIMIT_NOFILE, max(taken))


def addresses() -> int:
    """The addresses that this process uses, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


# -- limits of the process ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IPCChannelLayer, in_process.InProcessChannelLayer])
def test_too_few_addresses(prefix: str, kind: type[IPCChannelLayer]) -> None:
    """``ulimit -v``, and what schedulers set."""

    def run() -> Any:
        layer = kind(prefix)
        with limited(resource.RLIMIT_AS, addresses() + 64 * MIB):
            said = refused(layer)
        return said, works(layer)

    said, worked = in_child(run)
    assert "ulimit -v" in said and repr(prefix) in said and worked


def test_files_that_may_not_be_large_enough(prefix: str) -> None:
    """``ulimit -f``."""

    def run() -> Any:
        layer = IPCChannelLayer(prefix)
        with limited(resource.RLIMIT_FSIZE, MIB):
            said = refused(layer)
        return said, works(layer)

    said, worked = in_child(run)
    assert "ulimit -f" in said and worked


@pytest.mark.parametrize("lock", ["mutex", "file"])
def test_every_descriptor_that_is_lacking(prefix: str, lock: str) -> None:
    """At first there are none left, then one, and so on: the call fails, or it works."""

    def run() -> Any:
        said, spare = [], 0
        while True:
            layer = IPCChannelLayer(prefix, lock=lock)
            before = left(prefix)
            with only(spare):
                try:
                    layer.send("a", MESSAGE)
                except SegmentError as error:
                    said.append(str(error))
                else:
                    return said, works(layer)
            assert left(layer.prefix) == before
            layer.close()
            spare += 1

    said, worked = in_child(run)
    assert len(said) >= 3 and worked
    assert all("ulimit -n" in one and prefix in one for one in said)


def test_looking_without_descriptors(prefix: str) -> None:
    """The command's view of a layer, and its end."""

    def run() -> Any:
        layer = IPCChannelLayer(prefix)
        layer.send("a", MESSAGE)
        said = []
        with only(0):
            for call in (lambda: diagnose(prefix), lambda: destroy(prefix)):
                with pytest.raises(IPCError) as caught:
                    call()
                said.append(str(caught.value))
            shown = layers()
        assert layer.receive(["a"]) == ("a", MESSAGE)
        return said, [one.problem for one in shown]

    said, shown = in_child(run)
    assert all("ulimit -n" in one for one in said)
    assert shown == []  # the folder itself could not be read


# -- shared memory itself -------------------------------------------------------------------------


@is_root
def test_no_shared_memory_at_all(prefix: str) -> None:
    """A chroot or a sandbox without /dev/shm."""

    def run() -> Any:
        hide_devices()
        said = refused(IPCChannelLayer(prefix))
        with pytest.raises(IPCError, match="there are no layers"):
            diagnose(prefix)
        return said, destroy(prefix), layers()

    said, destroyed, shown = or_skip(run)
    assert "there is no /dev/shm" in said and "mode 1777" in said
    assert not destroyed and shown == []


@is_root
def test_shared_memory_that_is_read_only(prefix: str) -> None:
    def run() -> Any:
        mount_small_shared_memory(64 * MIB)
        make_shared_memory_read_only()
        return refused(IPCChannelLayer(prefix))

    said = or_skip(run)
    assert "read-only" in said and "remount,rw" in said and "chmod" not in said


@is_root
def test_every_inode_that_is_lacking(prefix: str) -> None:
    """The first is that of /dev/shm. Waiting needs one for the doorbell, and does without."""

    def with_inodes(number: int) -> Any:
        mount_small_shared_memory(64 * MIB, f"nr_inodes={number}")
        layer = IPCChannelLayer(prefix)
        before = left(prefix)
        try:
            layer.send("a", MESSAGE)
        except SegmentError as error:
            return str(error), left(prefix) == before
        return "", layer.receive(["a"], block=True) == ("a", MESSAGE)

    number, said = 1, "at first"
    while said:
        said, as_it_was = or_skip(partial(with_inodes, number))
        assert as_it_was, (number, said)
        assert not said or ("no inodes left" in said and "nr_inodes" in said)
        number += 1
    assert number > 4


@is_root
def test_shared_memory_of_another_user_only(prefix: str) -> None:
    def run() -> Any:
        mount_small_shared_memory(64 * MIB)
        os.chmod("/dev/shm", 0o755)
        os.setuid(65534)
        return refused(IPCChannelLayer(prefix))

    said = or_skip(run)
    assert "may not write there" in said and "1777" in said


# -- sandboxes ------------------------------------------------------------------------------------

# System calls of x86-64.
FALLOCATE, FLOCK, FCHMOD, CHMOD, MADVISE, FCNTL, MKNOD, MKNODAT = 285, 73, 91, 90, 28, 72, 133, 259
OFD_LOCKS = (36, 37, 38)


@pytest.mark.parametrize("call", [FALLOCATE, FLOCK, FCHMOD, CHMOD])
def test_a_sandbox_that_forbids_a_call_is_named(prefix: str, call: int) -> None:
    """Neither the mode of /dev/shm nor another user is blamed."""

    def run() -> Any:
        forbid(call)
        try:
            IPCChannelLayer(prefix).send("a", MESSAGE)
        except SegmentError as error:
            return str(error), isinstance(error, ForeignSegment)
        return "sent", False

    before = left(prefix)
    said, foreign = or_skip(run)
    assert "seccomp" in said and prefix in said and not foreign
    # The file of a flock may be in use elsewhere, where flocks are allowed.
    assert call == FLOCK or left(prefix) == before


@pytest.mark.parametrize(
    ("call", "answer", "commands"),
    [
        *((FALLOCATE, errno.ENOSYS, ()), (FALLOCATE, errno.EOPNOTSUPP, ())),
        *((MADVISE, errno.EPERM, ()), (MKNOD, errno.EPERM, ()), (MKNODAT, errno.EPERM, ())),
        *((FCNTL, errno.EINVAL, OFD_LOCKS), (FCNTL, errno.EPERM, OFD_LOCKS)),
    ],
)
def test_a_sandbox_without_what_can_be_done_without(
    prefix: str, call: int, answer: int, commands: tuple[int, ...]
) -> None:
    def run() -> bool:
        forbid(call, answer, commands)
        layer = IPCChannelLayer(prefix)
        assert works(layer)
        other = in_child(lambda: IPCChannelLayer(prefix).send("a", {"of": "a child"}))
        assert other is None
        return layer.receive(["a"], block=True) == ("a", {"of": "a child"})

    assert or_skip(run)


# -- what cannot be caused here -------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [errno.ENFILE, errno.EDQUOT, errno.ENOSYS, errno.EIO, errno.EACCES, errno.ENOSPC],
)
def test_whatever_else_the_system_says(
    prefix: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(opening, "map_file", fails)
    layer = IPCChannelLayer(prefix)
    said = refused(layer)
    assert prefix in said and refusals.reason(OSError(number, "")) in said
    monkeypatch.undo()
    assert works(layer)
    layer.close()


def test_errors_of_this_package_pass() -> None:
    with pytest.raises(ForeignSegment, match="^mine$"), refusals.told("do it"):
        raise ForeignSegment("mine")
