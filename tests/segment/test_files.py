"""The files beside a segment, the byte locks that tell who lives, and the flock for attaching."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.errors import ForeignSegment, LockTimeout
from asgi_ipc.segment import files
from asgi_ipc.segment.files import Members, attach_lock, check_owner, open_file
from asgi_ipc.segment.paths import Paths
from asgi_ipc.segment.procfs import flock_holder, in_locks
from asgi_ipc.store import native

from ..environments import run_python
from ..forks import NOBODY, Line, child, in_child, is_root, on_linux, rests
from ..waiting import LIVENESS, until


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


@pytest.fixture
def members(path: str) -> Iterator[Members]:
    opened = Members.open(path, 0o600)
    yield opened
    opened.close()


# -- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_file_has_the_mode_that_was_asked_for(path: str, mode: int, umask: int) -> None:
    def make() -> int:
        os.umask(umask)
        return stat.S_IMODE(os.fstat(open_file(path, mode)).st_mode)

    assert in_child(make) == mode


def test_a_file_is_made_once_and_then_opened(path: str) -> None:
    first, second = open_file(path, 0o600), open_file(path, 0o600)
    assert os.path.samestat(os.fstat(first), os.fstat(second))
    os.write(first, b"shared")
    assert os.read(second, 10) == b"shared"
    os.close(first)
    os.close(second)


def test_a_file_that_is_refused_is_closed_again(path: str, no_garbage: None) -> None:
    os.close(open_file(path, 0o600))
    os.chmod(path, 0o602)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(ForeignSegment, match="everybody can write"):
            open_file(path, 0o600)
    assert os.listdir("/proc/self/fd") == before


def test_descriptors_are_not_passed_to_other_programs(path: str) -> None:
    for _ in range(2):
        fd = open_file(path, 0o600)
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_a_file_that_the_world_can_write_is_refused(path: str) -> None:
    os.close(open_file(path, 0o600))
    os.chmod(path, 0o602)
    with pytest.raises(ForeignSegment, match="everybody"):
        open_file(path, 0o600)


def test_a_symbolic_link_is_not_followed(path: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(OSError):
        open_file(path, 0o600)


def test_what_is_not_a_file_is_refused(path: str) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(ForeignSegment, match="remove it"):
        open_file(path, 0o600)


@is_root
def test_the_file_of_another_user_is_refused(path: str) -> None:
    os.close(open_file(path, 0o600))
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(ForeignSegment, match=rf"uid {NOBODY}.*uid {os.geteuid()}"):
        open_file(path, 0o600)


@pytest.mark.parametrize(
    ("ours", "theirs", "allowed"),
    [(0o660, 0o660, True), (0o600, 0o660, False), (0o660, 0o600, False), (0o660, 0o640, False)],
)
def test_a_group_shares_what_all_of_it_opened_to_the_group(
    ours: int, theirs: int, allowed: bool
) -> None:
    status = os.stat_result(
        (stat.S_IFREG | theirs, 1, 1, 1, os.geteuid() + 1, os.getegid(), 0, 0, 0, 0)
    )
    if allowed:
        check_owner("it", status, ours, stat.S_ISREG)
    else:
        with pytest.raises(ForeignSegment):
            check_owner("it", status, ours, stat.S_ISREG)


def test_a_group_that_we_are_not_in_shares_nothing() -> None:
    strange = max([os.getegid(), *os.getgroups()]) + 1
    status = os.stat_result((stat.S_IFREG | 0o660, 1, 1, 1, os.geteuid() + 1, strange, 0, 0, 0, 0))
    with pytest.raises(ForeignSegment):
        check_owner("it", status, 0o660, stat.S_ISREG)


# -- byte locks -----------------------------------------------------------------------------------


def claiming(path: str, *indices: int) -> Any:
    """A child that holds these bytes."""

    def claim(line: Line) -> None:
        members = Members.open(path, 0o600)
        assert all(map(members.claim, indices))
        rests(line)

    return child(claim)


def test_a_byte_is_held_while_its_process_lives(path: str, members: Members) -> None:
    with claiming(path, 3) as process:
        process.hear()
        assert members.held(3)
        assert [index for index in range(10) if members.held(index)] == [3]
        process.kill()
        assert not members.held(3)


def test_a_range_is_held_if_one_byte_is(path: str, members: Members) -> None:
    with claiming(path, 3) as process:
        process.hear()
        assert members.held(0, 10)
        assert not members.held(0, 3)
        assert not members.held(4, 100)


def test_a_byte_belongs_to_one_process(path: str, members: Members) -> None:
    with claiming(path, 3) as process:
        process.hear()
        assert not members.claim(3)
        assert members.claim(4)
        process.kill()
        assert members.claim(3)
    assert members.claimed == {3, 4}


def test_a_byte_is_claimed_once(members: Members) -> None:
    assert members.claim(3)
    assert not members.claim(3)
    members.release(3)
    assert members.claimed == set()
    assert members.claim(3)


def test_ones_own_bytes_are_not_seen_held(members: Members) -> None:
    members.claim(3)
    assert not members.held(3)
    assert 3 in members.claimed


def test_others_see_what_is_claimed_until_it_is_released(path: str, members: Members) -> None:
    def look() -> bool:
        Members.forget_all()
        return Members.open(path, 0o600).held(3)

    members.claim(3)
    assert in_child(look)
    members.release(3)
    assert not in_child(look)


def test_a_fork_does_not_inherit_the_claim(path: str, members: Members) -> None:
    members.claim(3)

    def outlive(line: Line) -> None:
        Members.forget_all()
        rests(line)

    with child(outlive) as process:
        process.hear()
        members.release(3)
        again = Members.open(path, 0o600)
        assert not again.held(3)
        again.close()


def test_closing_one_of_two_users_keeps_the_claims(path: str, members: Members) -> None:
    """The kernel drops all locks of a process on a file with the first descriptor it closes."""

    def look() -> bool:
        Members.forget_all()
        return Members.open(path, 0o600).held(3)

    members.claim(3)
    second = Members.open(path, 0o600)
    assert second is members
    second.close()
    assert in_child(look)


def test_all_are_seen_in_whatever_order_they_came(path: str, members: Members) -> None:
    """The kernel tells of some lock in a stretch, not of the first."""
    indices = [5, 1, 9, 3, 7]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(claiming(path, index)) for index in indices[:2]]
        members.claim(4)
        processes += [stack.enter_context(claiming(path, index)) for index in indices[2:]]
        for process in processes:
            process.hear()
        pids = {index: process.pid for index, process in zip(indices, processes)}
        assert members.pids() == set(pids.values())
        assert Members.glance(path) == {**pids, 4: os.getpid()}


def test_a_file_that_was_replaced_has_its_own_members(path: str, members: Members) -> None:
    members.claim(3)
    os.unlink(path)
    other = Members.open(path, 0o600)
    assert other is not members
    assert other.claim(3)
    other.close()


# -- the flock under which everything is created and removed --------------------------------------


def test_one_process_attaches_at_a_time(prefix: str) -> None:
    def hold(line: Line) -> None:
        with attach_lock(Paths(prefix), 0o600):
            rests(line)

    with child(hold) as process:
        process.hear()
        with pytest.raises(LockTimeout, match="attach.lock"):
            with attach_lock(Paths(prefix), 0o600, timeout=0.02):
                pass
        process.kill()
        with attach_lock(Paths(prefix), 0o600, timeout=0.02):
            pass


def waiters(path: str) -> int:
    """How many wait in the kernel for a flock on the file at `path`."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum("->" in words and words[6] == in_locks(path) for words in lines)


@on_linux
def test_processes_that_wait_get_the_flock_in_the_order_in_which_they_came(prefix: str) -> None:
    paths = Paths(prefix)
    order = os.pipe()

    def hold(line: Line) -> None:
        with attach_lock(paths, 0o600):
            rests(line)

    def wait(number: int) -> Callable[[Line], None]:
        def wait(line: Line) -> None:
            with attach_lock(paths, 0o600, LIVENESS):
                os.write(order[1], bytes([number]))

        return wait

    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(child(hold))
        holder.hear()
        waiting = []
        for number in range(8):
            waiting.append(stack.enter_context(child(wait(number))))
            until(lambda number=number: waiters(paths.attach_lock) == number + 1)
        holder.say()
        for process in waiting:
            process.hear()
        assert list(os.read(order[0], 8)) == list(range(8))
    for fd in order:
        os.close(fd)


@on_linux
def test_three_hundred_that_wait_at_once_all_attach(prefix: str) -> None:
    run_python(f"from tests.segment.crowd import attach_at_once\nattach_at_once({prefix!r}, 300)")


@pytest.mark.parametrize("stopped", [True, False])
def test_a_process_that_waits_in_vain_is_told_which_one_holds_the_flock(
    prefix: str, stopped: bool
) -> None:
    """And the thread that waited lets go when it gets it at last."""
    paths = Paths(prefix)

    def hold(line: Line) -> None:
        with attach_lock(paths, 0o600):
            rests(line)

    with child(hold) as process:
        process.hear()
        if stopped:
            process.kill(signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(LockTimeout, match=rf"process {process.pid} .*lock_timeout") as told:
                with attach_lock(paths, 0o600, timeout=0.05):
                    pass
            assert ("is stopped: resume it" in str(told.value)) == stopped
            until(lambda: waiters(paths.attach_lock) == 1)  # not one more for each try
        process.kill()
        until(lambda: not files._waiting)
        with attach_lock(paths, 0o600, timeout=0.05):
            assert not in_child(lambda: taken(paths))


def taken(paths: Paths) -> bool:
    try:
        with attach_lock(paths, 0o600, timeout=0.02):
            return True
    except LockTimeout:
        return False


def test_a_program_ends_while_its_thread_waits(prefix: str) -> None:
    def hold(line: Line) -> None:
        with attach_lock(Paths(prefix), 0o600):
            rests(line)

    source = f"""
import asgi_ipc, os, warnings
warnings.simplefilter("ignore")  # of a fork beside a thread, which is what this is about
layer = asgi_ipc.IPCChannelLayer({prefix!r}, lock_timeout=0.1)
try:
    layer.send("c", {{}})
except asgi_ipc.errors.LockTimeout:
    print("timed out")
pid = os.fork()
if not pid:
    os._exit(0)
print(os.waitpid(pid, 0)[1])
"""
    with child(hold) as process:
        process.hear()
        assert run_python(source).split() == ["timed", "out", "0"]


@pytest.mark.parametrize("fails", [True, False])
def test_where_no_thread_can_wait_it_polls(
    prefix: str, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Under gevent, which replaces the function, a thread that blocks would hold up all others; and
    the process may have as many threads as it may."""

    def start(*_: object) -> None:
        raise AssertionError("a thread was started")

    def refuse(*_: object) -> bool:
        raise RuntimeError("can't start new thread")

    if fails:
        monkeypatch.setattr(files, "_flocked_by_a_thread", refuse)
    else:
        monkeypatch.setattr(files, "start_new_thread", start)

    def hold(line: Line) -> None:
        with attach_lock(Paths(prefix), 0o600):
            rests(line)

    with child(hold) as process:
        process.hear()
        with pytest.raises(LockTimeout):
            with attach_lock(Paths(prefix), 0o600, timeout=0.05):
                pass
        process.say()
        with attach_lock(Paths(prefix), 0o600, timeout=LIVENESS):
            pass


@on_linux
def test_a_process_that_waited_for_a_lock_that_was_removed_takes_the_new_one(prefix: str) -> None:
    def hold(line: Line) -> None:
        with attach_lock(Paths(prefix), 0o600):
            rests(line)
            os.unlink(Paths(prefix).attach_lock)

    def wait(line: Line) -> bool:
        line.say("waits")
        with attach_lock(Paths(prefix), 0o600):
            return flock_holder(Paths(prefix).attach_lock) == os.getpid()

    with child(hold) as holder, child(wait) as waiter:
        holder.hear()
        waiter.hear()
        holder.say()
        assert waiter.hear()


@pytest.mark.parametrize("field", files.File._fields)
def test_a_file_that_is_not_what_is_known_is_noticed(tmp_path: Path, field: str) -> None:
    """By both implementations, where there are two."""
    ways = [(files._known_to_python, files._are_files)]
    if native.LOADED:
        ways.append((files._known_to_c, native.are_files))
    path = tmp_path / "file"
    path.write_bytes(b"some bytes")
    with path.open() as opened:
        status = os.fstat(opened.fileno())
        size, changed = status.st_size, status.st_ctime_ns
        file = files.file_of(opened.fileno())._replace(size=size, changed=changed)
        less = [file._replace(**{each: files.ANY}) for each in ("links", "size", "changed")]
        other = file._replace(**{field: 2**31 - 1})
        for known, are_files in ways:
            assert all(are_files(known((each, file))) for each in (file, *less))
            for some in ((other,), (file, other), (other, file)):
                assert not are_files(known(some))
    for known, are_files in ways:
        assert not are_files(known((file,)))  # closed
