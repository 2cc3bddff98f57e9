"""The segment of a prefix: created once, found again, replaced when it is stale, refused when it
belongs to another user, and gone when it is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.errors import (
    CorruptStore,
    ForeignSegment,
    IncompatibleSegment,
    LimitReached,
    NoSuchLayer,
    SegmentError,
)
from asgi_ipc.segment.lock import Mutex
from asgi_ipc.segment.opening import attach, destroy, open_existing
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import (
    H_CREATED,
    H_LOCK,
    H_MACHINE,
    H_MAGIC,
    H_MESSAGE_MEMORY,
    H_NONCE,
    H_SIZE,
    H_VERSION,
    MAGIC,
    MAX_PROCESSES,
    P_GENERATION,
    PAGE,
    VERSION,
    WORD,
    Layout,
)
from asgi_ipc.store.store import Store

from ..forks import (
    NOBODY,
    Line,
    bounded,
    child,
    children,
    in_child,
    is_root,
    mount_small_shared_memory,
    on_linux,
    or_skip,
    rests,
    unshare_pids,
    unshare_time,
)
from ..unit.support import KIB, bodies, put
from .segments import (
    SHM,
    attach_and_leave,
    attached,
    file_of,
    folder_of,
    living,
    mode_of,
    wants,
    warnings,
    write_word,
)

pytestmark = [
    on_linux,  # where segments can be looked at as files
    pytest.mark.usefixtures("shm_way", "no_garbage"),
]


# -- made and found -------------------------------------------------------------------------------


def test_the_longest_prefix_works(prefix: str) -> None:
    longest = prefix + "n" * (100 - len(prefix))
    try:
        assert attach_and_leave(wants(longest)) == attach_and_leave(wants(longest))
    finally:
        assert destroy(longest)


def test_prefixes_do_not_share(prefix: str) -> None:
    other = f"{prefix}.other"
    try:
        assert attach_and_leave(wants(prefix)) != attach_and_leave(wants(other))
    finally:
        destroy(other)


def test_a_fresh_segment_takes_next_to_no_memory(prefix: str) -> None:
    with attached(wants(prefix, message_memory=1 << 30, group_memory=1 << 28)) as (found, _):
        status = os.fstat(found.fd)
        assert status.st_size == found.layout.size > 1 << 30
        assert status.st_blocks * 512 < 256 * KIB


def test_the_header_says_what_it_is(prefix: str) -> None:
    with attached(wants(prefix)) as (found, _):
        words = memoryview(found.memory).cast("Q")
        assert (words[H_MAGIC], words[H_VERSION]) == (MAGIC, VERSION)
        assert words[H_SIZE] == found.layout.size == len(found.memory)
        assert words[H_MESSAGE_MEMORY] == 256 * KIB
        assert words[H_NONCE] == found.nonce != 0
        words.release()


def test_the_segment_outlives_its_processes(prefix: str) -> None:
    def send() -> int:
        with attached(wants(prefix)) as (found, _):
            store = Store(found.memory, found.layout, found.reserve)
            put(store, "c", b"from one that has gone")
            return found.nonce

    nonce = in_child(send)
    with attached(wants(prefix)) as (found, _):
        assert found.nonce == nonce
        assert bodies(Store(found.memory, found.layout), "c") == [b"from one that has gone"]


def test_fifty_processes_at_once_get_the_same_segment(prefix: str) -> None:
    def attach(line: Line) -> tuple[int, int]:
        rests(line)
        with attached(wants(prefix)) as (found, index):
            line.say((found.nonce, index))
            line.hear()

    with children([attach] * 50) as processes:
        for process in processes:
            process.hear()
        for process in processes:
            process.say()
        answers = [process.hear() for process in processes]
    nonces, indices = zip(*answers)
    assert len(set(nonces)) == 1
    assert len(set(indices)) == 50


def test_fifty_processes_at_once_replace_a_stale_segment_once(prefix: str) -> None:
    old = attach_and_leave(wants(prefix))
    write_word(prefix, H_VERSION, VERSION + 1)

    def attach(line: Line) -> None:
        rests(line)
        with attached(wants(prefix)) as (found, _):
            line.say(found.nonce)
            line.hear()

    with children([attach] * 50) as processes:
        for process in processes:
            process.hear()
        for process in processes:
            process.say()
        nonces = {process.hear() for process in processes}
    assert len(nonces) == 1 and nonces != {old}


def test_attaching_while_others_remove_it_either_works_or_works_later(prefix: str) -> None:
    def attach(line: Line) -> int:
        rests(line)
        return len([attach_and_leave(wants(prefix)) for _ in range(40)])

    def remove(line: Line) -> int:
        rests(line)
        return len([destroy(prefix) for _ in range(40)])

    with children([attach, remove] * 3) as processes, bounded():
        for process in processes:
            process.hear()
        for process in processes:
            process.say()
        assert [process.hear() for process in processes] == [40] * 6


@pytest.mark.parametrize("moment", ["mkdir", "chmod"])
def test_a_directory_that_is_removed_while_it_is_made_is_made_again(
    prefix: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a `destroy` in another process, at the worst moment."""
    real = getattr(os, moment)
    removals = [folder_of(prefix)]

    def overtaken(path: str, *arguments: Any, **options: Any) -> Any:
        if not removals or Path(path) != removals[0]:
            return real(path, *arguments, **options)
        if removals.pop().exists():
            os.rmdir(path)
            return real(path, *arguments, **options)
        raise FileExistsError(path)

    monkeypatch.setattr(os, moment, overtaken)
    assert attach_and_leave(wants(prefix))


def test_ids_of_processes_that_ended_are_used_again(prefix: str) -> None:
    with attached(wants(prefix)) as (_, first):
        with attached(wants(prefix)) as (_, second):
            assert (first, second) == (0, 1)
        with attached(wants(prefix)) as (_, third):
            assert third == 1


def test_ids_whose_rows_are_free_come_first(prefix: str) -> None:
    """Those of the dead wait until they are buried."""
    with attached(wants(prefix)) as (found, _):
        store = Store(found.memory, found.layout)
        store.words[store.process_row(1) + P_GENERATION] = 77
        with attached(wants(prefix)) as (_, index):
            assert index == 2
        store.close()


def test_more_processes_than_there_are_ids_get_a_clear_error(prefix: str) -> None:
    attach_and_leave(wants(prefix))

    def hold_all(line: Line) -> None:
        with (folder_of(prefix) / "members").open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, MAX_PROCESSES, 0)
            rests(line)

    with child(hold_all) as process:
        process.hear()
        with pytest.raises(LimitReached, match=str(MAX_PROCESSES)):
            attach(wants(prefix))
    attach_and_leave(wants(prefix))


def test_a_failed_attach_leaves_no_descriptor(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    file_of(prefix).chmod(0o666)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(ForeignSegment):
            attach(wants(prefix))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_process_that_attaches_alone_leaves_the_mutex_to_its_holder(prefix: str) -> None:
    """In a process that lost its byte lock, because the program closed its descriptors."""
    wanted = wants(prefix)

    def hold(line: Line) -> bool:
        with attached(wanted) as (found, _):
            lock = Mutex(found.memory, H_LOCK * WORD)
            assert lock.trylock(lock.handle) == 0
            os.close(found.members._fd)
            line.say()
            line.hear()
            held = lock.mine()
            lock.unlock(lock.handle)
        return held

    with child(hold) as process:
        process.hear()
        with attached(wanted) as (found, _):
            lock = Mutex(found.memory, H_LOCK * WORD)
            assert not found.members.held(0, MAX_PROCESSES)
            assert lock.holder() == process.pid
            assert lock.trylock(lock.handle) == errno.EBUSY
            process.say()
            assert process.hear() is True
            assert lock.trylock(lock.handle) == 0
            lock.unlock(lock.handle)


def test_a_process_that_attaches_alone_renews_the_mutex(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    write_word(prefix, H_LOCK, 2**64 - 1)  # as if held by a thread that does not exist
    with attached(wants(prefix)) as (found, _):
        lock = Mutex(found.memory, H_LOCK * WORD)
        assert lock.trylock(lock.handle) == 0
        assert lock.holder()
        lock.unlock(lock.handle)
        assert not lock.holder()
        del lock


# -- stale, half made, and of another kind --------------------------------------------------------


def cut_short(prefix: str) -> None:
    os.truncate(file_of(prefix), 100)


def made_empty(prefix: str) -> None:
    os.truncate(file_of(prefix), 0)


def made_longer(prefix: str) -> None:
    os.truncate(file_of(prefix), file_of(prefix).stat().st_size + PAGE)


def never_finished(prefix: str) -> None:
    write_word(prefix, H_MAGIC, 0)


def of_another_program(prefix: str) -> None:
    write_word(prefix, H_MAGIC, 0x0123456789ABCDEF)


def of_another_version(prefix: str) -> None:
    write_word(prefix, H_VERSION, VERSION + 1)


def of_another_machine(prefix: str) -> None:
    write_word(prefix, H_MACHINE, 1)


def that_contradicts_itself(prefix: str) -> None:
    write_word(prefix, H_MESSAGE_MEMORY, 16 << 20)


def of_an_earlier_boot(prefix: str) -> None:
    """The clock began again: whoever looks now is younger than the segment."""
    later = struct.pack("=d", time.monotonic() + 3600.0)
    write_word(prefix, H_CREATED, int.from_bytes(later, sys.byteorder))


STALE = [
    cut_short,
    made_empty,
    made_longer,
    never_finished,
    of_another_program,
    of_another_version,
    of_another_machine,
    that_contradicts_itself,
    of_an_earlier_boot,
]


@pytest.mark.parametrize("spoil", STALE)
def test_a_stale_segment_is_replaced_with_one_line(
    prefix: str, spoil: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    old = attach_and_leave(wants(prefix))
    spoil(prefix)
    new = attach_and_leave(wants(prefix))
    assert new != old
    assert len(warnings(caplog)) == 1 and prefix in warnings(caplog)[0]
    assert attach_and_leave(wants(prefix)) == new
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (of_another_version, IncompatibleSegment, rf"{VERSION + 1}.*{VERSION}"),
        (of_another_machine, IncompatibleSegment, r'lock="file"'),
        (never_finished, CorruptStore, "destroy"),
        (cut_short, CorruptStore, "destroy"),
        (made_longer, CorruptStore, "destroy"),
        (that_contradicts_itself, CorruptStore, "contradicts"),
    ],
)
def test_a_segment_in_use_is_never_replaced(
    prefix: str, spoil: Callable[[str], None], error: type[Exception], says: str
) -> None:
    with living(wants(prefix)) as process:
        nonce = process.hear()
        inode = file_of(prefix).stat().st_ino
        spoil(prefix)
        with pytest.raises(error, match=says):
            attach(wants(prefix))
        assert file_of(prefix).stat().st_ino == inode
        process.kill()
    assert attach_and_leave(wants(prefix)) != nonce


def test_a_clock_that_went_back_while_others_live_changes_nothing(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with living(wants(prefix)) as process:
        nonce = process.hear()
        of_an_earlier_boot(prefix)
        assert attach_and_leave(wants(prefix)) == nonce
        assert warnings(caplog) == []
        process.kill()


@pytest.mark.parametrize("name", ["message_memory", "group_memory", "max_message_size"])
def test_other_sizes_replace_a_segment_that_nobody_uses(
    prefix: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = attach_and_leave(wants(prefix))
    with attached(wants(prefix, **{name: 128 * KIB})) as (found, _):
        assert found.nonce != old
        assert getattr(found.layout, name) == 128 * KIB
    assert len(warnings(caplog)) == 1 and "sizes" in warnings(caplog)[0]


def test_the_sizes_of_a_segment_in_use_hold_for_all(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with living(wants(prefix)) as process:
        nonce = process.hear()
        size = file_of(prefix).stat().st_size
        with attached(wants(prefix, message_memory=1024 * KIB)) as (found, _):
            assert found.nonce == nonce
            assert found.layout.message_memory == 256 * KIB
        assert file_of(prefix).stat().st_size == size == Layout(256 * KIB, 64 * KIB, 4 * KIB).size
    assert len(warnings(caplog)) == 1 and str(256 * KIB) in warnings(caplog)[0]


def test_another_lock_is_refused_while_it_is_in_use(prefix: str) -> None:
    with living(wants(prefix)) as process:
        nonce = process.hear()
        with pytest.raises(IncompatibleSegment, match='"mutex".*"file"'):
            attach(wants(prefix, lock="file"))
        process.say()
        process.hear()
    assert attach_and_leave(wants(prefix, lock="file")) != nonce


# -- namespaces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unshare", [unshare_pids, unshare_time])
def test_another_namespace_is_refused_the_mutex_with_the_remedy(
    prefix: str, unshare: Callable[[], None]
) -> None:
    def attach() -> str:
        try:
            attach_and_leave(wants(prefix))
        except IncompatibleSegment as error:
            return str(error)
        return "attached"

    def elsewhere() -> Any:
        unshare()
        return in_child(attach)

    with attached(wants(prefix)):
        answer = or_skip(elsewhere)
    assert "namespace" in answer and "--pid=container" in answer


def test_another_pid_namespace_can_use_the_file_lock(prefix: str) -> None:
    wanted = wants(prefix, lock="file")

    def elsewhere() -> Any:
        unshare_pids()
        return in_child(lambda: attach_and_leave(wanted))

    with attached(wanted) as (found, _):
        assert or_skip(elsewhere) == found.nonce


def test_living_processes_are_seen_from_another_pid_namespace(prefix: str) -> None:
    """Otherwise a segment in use would look stale there."""
    wanted = wants(prefix, lock="file")

    def elsewhere() -> Any:
        unshare_pids()
        return in_child(lambda: attach_and_leave(wants(prefix, lock="file", group_memory=1 << 20)))

    with attached(wanted) as (found, _):
        assert or_skip(elsewhere) == found.nonce


# -- opened without attaching ---------------------------------------------------------------------


def test_a_segment_is_opened_without_attaching(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    before = mode_of(file_of(prefix)), file_of(prefix).read_bytes()
    for write in (False, True):
        opened = open_existing(Paths(prefix), write)
        assert os.path.samestat(os.fstat(opened.number), file_of(prefix).stat())
        assert os.access(f"/proc/self/fd/{opened.number}", os.R_OK)
    assert (mode_of(file_of(prefix)), file_of(prefix).read_bytes()) == before


def test_what_does_not_exist_is_not_made_and_those_that_do_are_named(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    with pytest.raises(NoSuchLayer, match=rf"{prefix}x.*\b{prefix}\b"):
        open_existing(Paths(f"{prefix}x"))
    assert not file_of(f"{prefix}x").exists()


@is_root
def test_what_another_user_made_is_not_opened(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    name, text = as_nobody(lambda: open_existing(Paths(prefix)))
    assert name == "ForeignSegment" and prefix in text


# -- whose it is ----------------------------------------------------------------------------------


def as_nobody(function: Callable[[], Any], *, keep_group: bool = False) -> Any:
    """What `function` returns, or the error that it raises, for another user."""

    def run() -> Any:
        os.setgroups([os.getgid()] if keep_group else [])
        if not keep_group:
            os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            return function()
        except Exception as error:
            return type(error).__name__, str(error)

    return in_child(run)


@is_root
def test_the_segment_of_another_user_is_refused(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    name, text = as_nobody(lambda: attach_and_leave(wants(prefix)))
    assert name == "ForeignSegment"
    assert "uid 0" in text and f"uid {NOBODY}" in text and "as one user" in text


@is_root
def test_what_another_user_made_is_refused_by_root(prefix: str) -> None:
    assert isinstance(as_nobody(lambda: attach_and_leave(wants(prefix))), int)
    with pytest.raises(ForeignSegment):
        attach(wants(prefix))
    with pytest.raises(ForeignSegment):
        destroy(prefix)
    assert as_nobody(lambda: destroy(prefix)) is True


@is_root
def test_a_segment_that_another_user_put_into_our_place_is_refused(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    os.chown(file_of(prefix), NOBODY, NOBODY)
    with pytest.raises(ForeignSegment, match=str(NOBODY)):
        attach(wants(prefix))


@is_root
def test_a_group_shares_a_segment_that_is_opened_to_it(prefix: str) -> None:
    wanted = wants(prefix, mode=0o660)
    nonce = attach_and_leave(wanted)
    assert as_nobody(lambda: attach_and_leave(wanted), keep_group=True) == nonce
    name, _ = as_nobody(lambda: attach_and_leave(wants(prefix)), keep_group=True)
    assert name == "ForeignSegment"


@is_root
def test_a_user_outside_the_group_is_refused(prefix: str) -> None:
    wanted = wants(prefix, mode=0o660)
    attach_and_leave(wanted)
    name, _ = as_nobody(lambda: attach_and_leave(wanted))
    assert name == "ForeignSegment"


@pytest.mark.parametrize("which", ["segment", "directory", "attach.lock", "members"])
def test_what_the_world_can_write_is_refused(prefix: str, which: str) -> None:
    attach_and_leave(wants(prefix))
    paths = {"segment": file_of(prefix), "directory": folder_of(prefix)}
    path = paths.get(which, folder_of(prefix) / which)
    mode = mode_of(path)
    path.chmod(mode | 0o002)
    with pytest.raises(ForeignSegment, match="everybody"):
        attach(wants(prefix))
    path.chmod(mode)
    attach_and_leave(wants(prefix))


def test_a_link_in_place_of_the_directory_is_refused(prefix: str, tmp_path: Path) -> None:
    folder_of(prefix).symlink_to(tmp_path)
    try:
        with pytest.raises(ForeignSegment):
            attach(wants(prefix))
    finally:
        folder_of(prefix).unlink()


@pytest.mark.parametrize("umask", [0, 0o777])
@pytest.mark.parametrize(("mode", "folder"), [(0o600, 0o700), (0o660, 0o2770)])
def test_modes_are_those_asked_for_whatever_the_umask(
    prefix: str, mode: int, folder: int, umask: int
) -> None:
    def make() -> None:
        os.umask(umask)
        attach_and_leave(wants(prefix, mode=mode))

    in_child(make)
    assert mode_of(file_of(prefix)) == mode
    assert mode_of(folder_of(prefix)) == folder
    assert {mode_of(path) for path in folder_of(prefix).iterdir()} == {mode}


# -- when there is no memory ----------------------------------------------------------------------


def test_a_full_shared_memory_is_a_clear_error_that_leaves_nothing() -> None:
    def run() -> Any:
        mount_small_shared_memory(64 * KIB)
        try:
            attach(wants("small"))
        except SegmentError as error:
            return str(error), [path.name for path in SHM.iterdir()]
        return "attached"

    text, left = or_skip(run)
    assert "--shm-size" in text
    assert left == []


# -- the end --------------------------------------------------------------------------------------


def test_destroy_removes_everything(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    assert destroy(prefix)
    assert not list(SHM.glob(f"asgi_ipc.{prefix}*"))
    assert not destroy(prefix)


def test_destroy_removes_what_else_lies_beside_a_segment(prefix: str) -> None:
    """The doorbells of processes that were killed."""
    attach_and_leave(wants(prefix))
    os.mkfifo(folder_of(prefix) / "7.1.bell")
    assert destroy(prefix)
    assert not folder_of(prefix).exists()


def test_destroy_removes_what_is_left_of_a_segment(prefix: str) -> None:
    attach_and_leave(wants(prefix))
    file_of(prefix).unlink()
    assert destroy(prefix)
    assert not folder_of(prefix).exists()


def test_destroy_of_what_never_was_makes_nothing(prefix: str) -> None:
    assert not destroy(prefix)
    assert not list(SHM.glob(f"asgi_ipc.{prefix}*"))
