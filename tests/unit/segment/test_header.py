"""The header: what is written can be read, and each thing that can be wrong with it is named."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable

import pytest

from asgi_ipc.errors import CorruptHeader, IncompatibleSegment, SegmentError
from asgi_ipc.segment import header
from asgi_ipc.segment.header import Fault, Header, format_segment
from asgi_ipc.segment.lock import robust_mutexes
from asgi_ipc.segment.wanted import Wanted
from asgi_ipc.store import layout as at
from asgi_ipc.store.store import Store
from asgi_ipc.store.verify import verify

from ..support import KIB

MEMBERS = 4711  # an inode


def wants(lock: str = "mutex", mode: int = 0o600) -> Wanted:
    return Wanted("prefix", 256 * KIB, 64 * KIB, 4 * KIB, mode, lock)


def formatted(wanted: Wanted) -> tuple[mmap.mmap, Header]:
    layout = wanted.layout()
    memory = mmap.mmap(-1, layout.size)
    return memory, format_segment(memory, layout, wanted, MEMBERS)


@pytest.fixture(params=["mutex", "file"])
def wanted(request: pytest.FixtureRequest) -> Wanted:
    if request.param == "mutex" and not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    return wants(request.param)


def changed(found: Header, word: int, value: int) -> Header:
    """The same header with another word in it."""
    page = bytearray(found.identity)
    struct.pack_into("=Q", page, word * at.WORD, value)
    return Header(bytes(page), found.size)


def error_of(fault: Fault | None) -> type[SegmentError]:
    assert fault is not None
    return fault.error


def test_what_was_written_can_be_read_and_attached_to(wanted: Wanted) -> None:
    memory, found = formatted(wanted)
    assert found.fault() is found.sharing_fault() is found.attach_fault(wanted, MEMBERS) is None
    assert found.sizes == wanted.sizes and found.layout.size == len(memory) == found.size
    assert (found.mode, found.lock, found.lock_kind) == (0o600, wanted.lock, wanted.lock_kind)
    assert found.known_version == at.VERSION
    assert found.nonce not in (0, formatted(wanted)[1].nonce)


def test_memory_is_formatted_with_an_empty_store(wanted: Wanted) -> None:
    memory, found = formatted(wanted)
    store = Store(memory, found.layout)
    assert verify(store, float("inf")) == []
    store.close()


@pytest.mark.parametrize(
    ("word", "value", "error", "says"),
    [
        (at.H_MAGIC, 0, CorruptHeader, "never finished"),
        (at.H_MAGIC, 0x0123456789ABCDEF, CorruptHeader, "not made by this package"),
        (at.H_VERSION, 77, IncompatibleSegment, "layout version 77"),
        (at.H_SIZE, 12345, CorruptHeader, "contradicts itself"),
        (at.H_MESSAGE_MEMORY, 16 << 20, CorruptHeader, "contradicts itself"),
        (at.H_GROUP_MEMORY, 2**64 - 1, CorruptHeader, "contradicts itself"),
        (at.H_MAX_MESSAGE, 0, CorruptHeader, "contradicts itself"),
        (at.H_MODE, 0o666, CorruptHeader, "mode"),
    ],
)
def test_what_nobody_can_read_is_named(
    wanted: Wanted, word: int, value: int, error: type[SegmentError], says: str
) -> None:
    _, whole = formatted(wanted)
    found = changed(whole, word, value)
    fault = found.fault()
    assert fault is not None and fault.error is error and says in fault.reason
    assert found.attach_fault(wanted, MEMBERS) == fault
    raised = fault.error_for("mysite")
    assert isinstance(raised, error) and "'mysite'" in str(raised) and says in str(raised)


@pytest.mark.parametrize("size", [0, 100, at.PAGE - 1])
def test_a_segment_without_a_whole_header_is_too_short(wanted: Wanted, size: int) -> None:
    memory, _ = formatted(wanted)
    fault = Header(memory[:size], size).fault()
    assert error_of(fault) is CorruptHeader and "too short" in str(fault)


def test_a_segment_that_was_cut_or_made_longer_contradicts_itself(wanted: Wanted) -> None:
    memory, found = formatted(wanted)
    for size in (found.size - at.PAGE, found.size + at.PAGE, at.PAGE):
        assert error_of(Header(memory[: at.PAGE], size).fault()) is CorruptHeader


def test_the_version_is_known_only_of_our_own(wanted: Wanted) -> None:
    _, whole = formatted(wanted)
    assert changed(whole, at.H_VERSION, 77).known_version == 77
    assert changed(whole, at.H_MAGIC, 77).known_version == 0


def test_another_lock_is_refused_to_a_process_that_attaches(wanted: Wanted) -> None:
    _, found = formatted(wanted)
    other = wants("file" if wanted.lock == "mutex" else "mutex")
    fault = found.attach_fault(other, MEMBERS)
    assert error_of(fault) is IncompatibleSegment
    assert f'uses lock="{wanted.lock}"' in str(fault) and f'asks for lock="{other.lock}"' in str(
        fault
    )
    assert found.fault() is found.sharing_fault() is None


def test_files_that_were_removed_meanwhile_are_noticed_by_a_process_that_attaches(
    wanted: Wanted,
) -> None:
    _, found = formatted(wanted)
    assert error_of(found.attach_fault(wanted, MEMBERS + 1)) is CorruptHeader


def of_another_pid_namespace(found: Header) -> Header:
    return changed(found, at.H_PID_NS, found.pid_namespace + 1)


def of_another_time_namespace(found: Header) -> Header:
    return changed(found, at.H_TIME_NS, found.time_namespace + 1)


def of_another_machine(found: Header) -> Header:
    return changed(found, at.H_MACHINE, found.machine + 1)


@pytest.mark.parametrize(
    ("elsewhere", "remedy", "also_file"),
    [
        (of_another_time_namespace, "--pid=container", True),
        (of_another_pid_namespace, 'lock="file"', False),
        (of_another_machine, 'lock="file"', False),
    ],
)
def test_a_process_that_cannot_share_the_lock_is_told_the_remedy(
    wanted: Wanted, elsewhere: Callable[[Header], Header], remedy: str, also_file: bool
) -> None:
    """It can be looked at all the same. A file is a lock for every PID namespace and libc."""
    found = elsewhere(formatted(wanted)[1])
    fault = found.sharing_fault()
    assert found.fault() is None
    assert found.attach_fault(wanted, MEMBERS) == fault
    if wanted.lock == "file" and not also_file:
        assert fault is None
    else:
        assert fault is not None and fault.error is IncompatibleSegment
        assert remedy in fault.remedy and remedy in str(fault.error_for("mysite"))


def test_where_there_are_no_namespaces_all_are_of_one(
    wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header, "namespace", lambda kind: 0)
    assert formatted(wanted)[1].sharing_fault() is None
