"""The files beside a segment, the byte locks that tell who lives, and the flock for attaching."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.errors import ForeignSegment, LockTimeout
from asgi_ipc.segment.files import Members, attach_lock, check_owner, open_file
from asgi_ipc.segment.paths import Paths

from ..forks import NOBODY, Line, child, in_child, is_root, on_linux, rests


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


@on_linux
def test_who_waited_for_a_lock_that_was_removed_meanwhile_takes_the_new_one(prefix: str) -> None:
    def hold(line: Line) -> None:
        with attach_lock(Paths(prefix), 0o600):
            rests(line)
            os.unlink(Paths(prefix).attach_lock)

    def wait(line: Line) -> bool:
        line.say("waits")
        with attach_lock(Paths(prefix), 0o600):
            locks = Path("/proc/locks").read_text().splitlines()
            inode = Path(Paths(prefix).attach_lock).stat().st_ino
            return any(line.split()[5].endswith(f":{inode}") for line in locks)

    with child(hold) as holder, child(wait) as waiter:
        holder.hear()
        waiter.hear()
        holder.say()
        assert waiter.hear()
