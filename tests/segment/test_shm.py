"""Shared memory by name, with posix_ipc and without it: the same memory, and the same errors."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.segment import shm
from asgi_ipc.segment.opening import destroy
from asgi_ipc.segment.shm import create_memory, open_memory, unlink_memory

from ..environments import child_environment
from ..forks import (
    NOBODY,
    Line,
    children,
    in_child,
    is_root,
    mount_small_shared_memory,
    on_linux,
    or_skip,
    rests,
)
from .segments import SHM, WAYS, attach_and_leave, attached, use, wants

# Where there is more than one way.
pytestmark = [on_linux, pytest.mark.usefixtures("no_garbage")]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back afterwards what `use` changes."""
    monkeypatch.setattr(shm, "_posix_ipc", shm._posix_ipc)


@pytest.fixture
def name(prefix: str) -> Iterator[str]:
    yield f"/asgi_ipc.{prefix}"
    with contextlib.suppress(OSError):
        os.unlink(SHM / f"asgi_ipc.{prefix}")


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


# -- each way -------------------------------------------------------------------------------------


def test_what_is_created_is_opened_and_removed(shm_way: str, name: str) -> None:
    with closing(create_memory(name, 0o600, 12345)) as made:
        assert os.fstat(made).st_size == 12345
        assert not os.get_inheritable(made)
        os.pwrite(made, b"written", 100)
        with closing(open_memory(name)) as opened:
            assert os.path.samestat(os.fstat(opened), os.fstat(made))
            assert not os.get_inheritable(opened)
            assert os.pread(opened, 7, 100) == b"written"
        unlink_memory(name)
        assert os.fstat(made).st_nlink == 0


def test_memory_that_is_opened_to_read_cannot_be_written(shm_way: str, name: str) -> None:
    os.close(create_memory(name, 0o600, 4096))
    with closing(open_memory(name, write=False)) as opened, pytest.raises(OSError):
        os.pwrite(opened, b"x", 0)


def test_the_umask_takes_bits_away_and_none_is_added(shm_way: str, name: str) -> None:
    def make() -> None:
        os.umask(0o077)
        os.close(create_memory(name, 0o660, 4096))

    in_child(make)
    assert stat.S_IMODE(os.stat(SHM / name[1:]).st_mode) == 0o600


@pytest.mark.parametrize(
    "call",
    [open_memory, unlink_memory, lambda name: open_memory(name, write=False)],
    ids=["open", "unlink", "open to read"],
)
def test_what_does_not_exist_is_not_found(
    shm_way: str, name: str, call: Callable[[str], Any]
) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        call(name)


def test_a_name_that_is_taken_is_left_as_it_is(shm_way: str, name: str) -> None:
    with closing(create_memory(name, 0o600, 4096)) as made:
        with pytest.raises(FileExistsError, match=name):
            create_memory(name, 0o600, 8192)
        with closing(open_memory(name)) as opened:
            assert os.path.samestat(os.fstat(opened), os.fstat(made))
        assert os.fstat(made).st_size == 4096


def test_a_size_that_is_refused_leaves_nothing(shm_way: str, name: str) -> None:
    def refused() -> bool:
        before = os.listdir("/proc/self/fd")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            create_memory(name, 0o600, 8192)
        except OSError:
            return before == os.listdir("/proc/self/fd")
        return False

    assert in_child(refused)
    assert not (SHM / name[1:]).exists()


@is_root
@pytest.mark.parametrize("call", [open_memory, unlink_memory])
def test_the_memory_of_another_user_is_refused(
    shm_way: str, name: str, call: Callable[[str], Any]
) -> None:
    os.close(create_memory(name, 0o600, 4096))

    def refused() -> bool:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            call(name)
        except PermissionError as error:
            return error.filename == name or error.filename == f"{SHM}{name}"
        return False

    assert in_child(refused)


def test_a_link_is_not_followed(shm_way: str, name: str, tmp_path: Any) -> None:
    (tmp_path / "target").write_bytes(b"of somebody else")
    (SHM / name[1:]).symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        os.close(open_memory(name))


def test_a_fifo_in_its_place_does_not_stop_the_caller(name: str) -> None:
    use("files")
    os.mkfifo(SHM / name[1:])
    os.close(open_memory(name, write=False))


def test_where_there_is_no_shared_memory_the_error_says_so() -> None:
    """As in a container without /dev/shm."""

    def run() -> str:
        use("files")
        mount_small_shared_memory(4096)
        os.chroot(SHM)
        try:
            attach_and_leave(wants("nowhere"))
        except asgi_ipc.errors.SegmentError as error:
            return str(error)
        return "attached"

    assert "Mount a tmpfs" in or_skip(run)


# -- both ways at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_one_process_finds_what_another_made(prefix: str, first: str, second: str) -> None:
    def make() -> int:
        use(first)
        return attach_and_leave(wants(prefix))

    def remove() -> bool:
        use(second)
        return destroy(prefix)

    for way in (first, second):
        use(way)  # or skip
    nonce = in_child(make)
    assert attach_and_leave(wants(prefix)) == nonce
    assert in_child(remove)
    assert in_child(make) != nonce


def test_processes_of_both_kinds_that_come_at_once_get_the_same_segment(prefix: str) -> None:
    def come(way: str, line: Line) -> int:
        use(way)
        rests(line)
        with attached(wants(prefix)) as (found, _):
            line.say(found.nonce)
            line.hear()
        return found.nonce

    def with_library(line: Line) -> int:
        return come("posix_ipc", line)

    def without(line: Line) -> int:
        return come("files", line)

    use("posix_ipc")  # or skip
    with children([with_library, without] * 20) as processes:
        for process in processes:
            process.hear()
        for process in processes:
            process.say()
        assert len({process.hear() for process in processes}) == 1


ECHO = """
import sys
sys.modules["posix_ipc"] = None  # as if it could not be imported
import asgi_ipc
from asgi_ipc.segment import shm
assert shm._posix_ipc is None
layer = asgi_ipc.IPCChannelLayer(sys.argv[1], receive_timeout=60)
channel, message = layer.receive(["there"], block=True)
layer.send("back", message)
"""


def test_a_process_without_the_library_talks_to_one_that_has_it(prefix: str) -> None:
    use("posix_ipc")
    layer = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=60)
    layer.send("there", MESSAGE)
    subprocess.run(
        [sys.executable, "-c", ECHO, prefix], env=child_environment(), check=True, timeout=60
    )
    assert layer.receive(["back"]) == ("back", MESSAGE)
    layer.close()


def test_a_free_threaded_python_does_not_import_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would turn the GIL on, for the whole process; even if an import has it on just now."""
    monkeypatch.setattr(sys, "abiflags", "t")
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    assert shm._library() is None
