"""Doorbells: a ring arrives, says for which queue it is, and tells when nobody reads it."""

from __future__ import annotations

import contextlib
import os
import posix
import select
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi_ipc.segment.doorbell import ALL, Descriptor, Doorbell, Ringer, path_of

from ..environments import run_python
from ..forks import Line, bounded, child, in_child
from ..waiting import LIVENESS, in_threads

NONCE = 0x0123456789ABCDEF
FIFO_ROOM = 65536  # bytes that Linux keeps for a reader

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


@contextlib.contextmanager
def bell_of(folder: str, waiter_id: int = 5, generation: int = 7) -> Iterator[Doorbell]:
    made = Doorbell(path_of(folder, NONCE, waiter_id, generation), 0o600)
    try:
        yield made
    finally:
        made.close()


def readable(bell: Doorbell, seconds: float = 0) -> bool:
    poller = select.poll()  # `select` takes no descriptor above 1023
    poller.register(bell, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


# -- ringing --------------------------------------------------------------------------------------


def test_a_ring_wakes_a_sleeper_and_says_for_which_queue(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    with bell_of(folder) as bell:
        assert not readable(bell) and bell.answer() == []
        assert ringer.ring(5, 7, 4711)
        assert readable(bell)
        assert bell.answer() == [4711]
        assert not readable(bell) and bell.answer() == []


def test_rings_for_several_queues_are_told_apart(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    with bell_of(folder) as bell:
        for row in (8, 9, 8, 2**32 - 1, 8):
            ringer.ring(5, 7, row)
        assert bell.answer() == [8, 9, 2**32 - 1]


def test_bells_are_told_apart(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    with bell_of(folder, 1) as first, bell_of(folder, 2) as second:
        ringer.ring(2, 7, 8)
        assert first.answer() == [] and second.answer() == [8]


def test_a_ring_from_another_process_arrives(folder: str) -> None:
    with bell_of(folder) as bell:
        assert in_child(lambda: Ringer(folder, NONCE).ring(5, 7, 8))
        assert readable(bell, LIVENESS)
        assert bell.answer() == [8]


def test_a_thread_of_the_same_process_rings_directly(folder: str) -> None:
    with bell_of(folder) as bell:
        in_threads([lambda: bell.ring(8)])
        assert bell.answer() == [8]


def test_a_bell_that_is_full_of_rings_has_been_told(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    with bell_of(folder) as bell, bounded():
        for _ in range(FIFO_ROOM // 4 + 100):
            assert ringer.ring(5, 7, 8)
        bell.ring(9)
        assert bell.answer() == [ALL]
        assert bell.answer() == []
        assert ringer.ring(5, 7, 8)
        assert bell.answer() == [8]


def test_more_rings_than_are_read_at_once_mean_all(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    with bell_of(folder) as bell:
        for row in range(1, 1025):
            ringer.ring(5, 7, row)
        assert bell.answer() == [ALL]
        assert bell.answer() == []


def test_a_flood_of_rings_does_not_keep_its_reader(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes as fast as this reads, so that the bell is never empty."""
    with bell_of(folder) as bell, bounded(LIVENESS / 6):
        monkeypatch.setattr(posix, "read", lambda fd, room: bytes(room))
        assert bell.answer() == [ALL]


def test_half_a_ring_means_all(folder: str) -> None:
    with bell_of(folder) as bell:
        os.write(bell.fileno(), b"abc")
        assert bell.answer() == [ALL]


# -- nobody reads it ------------------------------------------------------------------------------


def test_a_bell_that_never_was_is_gone(folder: str) -> None:
    assert not Ringer(folder, NONCE).ring(5, 7, 8)


def test_a_bell_that_was_closed_is_gone(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    with bell_of(folder) as bell:
        assert ringer.ring(5, 7, 8)
        bell.close()
        assert not ringer.ring(5, 7, 8)
        assert not ringer.ring(5, 7, 8)
    assert os.listdir(folder) == []


def test_the_bell_of_a_killed_process_is_gone_although_its_name_is_there(folder: str) -> None:
    def live(line: Line) -> None:
        made = Doorbell(path_of(folder, NONCE, 5, 7), 0o600)
        line.say(made.fileno())
        line.hear()

    ringer = Ringer(folder, NONCE)
    with child(live) as process:
        process.hear()
        assert ringer.ring(5, 7, 8)
        process.kill()
    assert os.path.exists(path_of(folder, NONCE, 5, 7))
    assert not ringer.ring(5, 7, 8)
    assert not Ringer(folder, NONCE).ring(5, 7, 8)


def test_another_generation_is_another_bell(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    with bell_of(folder, 5, 7) as old:
        assert ringer.ring(5, 7, 8)
        old.close()
        with bell_of(folder, 5, 9) as new:
            assert not ringer.ring(5, 7, 8)
            assert ringer.ring(5, 9, 8)
            assert new.answer() == [8]


def test_generation_0_is_nobodys(folder: str) -> None:
    with bell_of(folder, 5, 0):
        assert not Ringer(folder, NONCE).ring(5, 0, 8)


def test_names_differ_by_segment_waiter_and_generation(folder: str) -> None:
    names = {path_of(folder, *which) for which in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))}
    assert len(names) == 4


def test_what_is_no_fifo_is_not_written_to(folder: str) -> None:
    precious = Path(path_of(folder, NONCE, 5, 7))
    precious.write_text("kept")
    assert not Ringer(folder, NONCE).ring(5, 7, 8)
    assert precious.read_text() == "kept"


def test_a_link_to_another_bell_is_not_followed(folder: str) -> None:
    with bell_of(folder, 6) as other:
        os.symlink(path_of(folder, NONCE, 6, 7), path_of(folder, NONCE, 5, 7))
        assert not Ringer(folder, NONCE).ring(5, 7, 8)
        assert other.answer() == []


def test_a_reader_that_is_gone_raises_no_signal(folder: str) -> None:
    """Where SIGPIPE is not ignored, it would end the sender."""
    source = f"""
import signal
from asgi_ipc.segment.doorbell import Doorbell, Ringer, path_of
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
ringer = Ringer({folder!r}, 1)
bell = Doorbell(path_of({folder!r}, 1, 5, 7), 0o600)
print(ringer.ring(5, 7, 8))
bell.close()
print(ringer.ring(5, 7, 8))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.sigpending())
"""
    assert run_python(source).split() == ["True", "False", "set()", "set()"]


def test_a_sigpipe_that_was_blocked_before_stays_blocked(folder: str) -> None:
    def run() -> tuple[bool, bool]:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        ringer = Ringer(folder, NONCE)
        bell = Doorbell(path_of(folder, NONCE, 5, 7), 0o600)
        ringer.ring(5, 7, 8)
        bell.close()
        rung = ringer.ring(5, 7, 8)
        return rung, signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    assert in_child(run) == (False, True)


# -- files and descriptors ------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_bell_has_the_mode_that_was_asked_for(folder: str, mode: int, umask: int) -> None:
    def make() -> int:
        os.umask(umask)
        path = path_of(folder, NONCE, 5, 7)
        made = Doorbell(path, mode)
        status = os.stat(path)
        made.close()
        assert stat.S_ISFIFO(status.st_mode)
        return stat.S_IMODE(status.st_mode)

    assert in_child(make) == mode


def test_closing_removes_the_name_and_the_descriptor(folder: str) -> None:
    before = len(os.listdir("/dev/fd"))
    with bell_of(folder) as bell:
        assert not os.get_inheritable(bell.fileno())
        bell.close()
        bell.close()
        assert os.listdir(folder) == []
        assert len(os.listdir("/dev/fd")) == before
        with pytest.raises(ValueError, match="closed"):
            bell.fileno()
        bell.ring(8)


def test_a_bell_that_is_forgotten_keeps_its_name(folder: str) -> None:
    """In a forked child: the bell is its parent's."""
    with bell_of(folder) as bell:

        def forget() -> list[str]:
            before = len(os.listdir("/dev/fd"))
            bell.forget()
            bell.close()
            assert len(os.listdir("/dev/fd")) == before - 1
            return os.listdir(folder)

        assert len(in_child(forget)) == 1
        assert Ringer(folder, NONCE).ring(5, 7, 8)
        assert bell.answer() == [8]


def test_a_bell_that_cannot_be_opened_leaves_nothing(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError("no descriptors")

    monkeypatch.setattr("asgi_ipc.segment.doorbell.os.open", refuse)
    with pytest.raises(OSError, match="no descriptors"):
        Doorbell(path_of(folder, NONCE, 5, 7), 0o600)
    monkeypatch.undo()
    assert os.listdir(folder) == []


def test_a_ringer_that_is_closed_leaves_no_descriptor(folder: str) -> None:
    with contextlib.ExitStack() as stack:
        for waiter_id in range(20):
            stack.enter_context(bell_of(folder, waiter_id))
        before = len(os.listdir("/dev/fd"))
        ringer = Ringer(folder, NONCE)
        for waiter_id in range(20):
            ringer.ring(waiter_id, 7, 8)
        assert len(os.listdir("/dev/fd")) == before + 20
        ringer.forget(3)
        ringer.forget(3)
        assert len(os.listdir("/dev/fd")) == before + 19
        ringer.close()
        assert len(os.listdir("/dev/fd")) == before


def test_a_ringer_keeps_no_descriptor_of_a_waiter_that_is_gone(folder: str) -> None:
    ringer = Ringer(folder, NONCE)
    before = len(os.listdir("/dev/fd"))
    for generation in range(1, 50):
        with bell_of(folder, 5, generation):
            assert ringer.ring(5, generation, 8)
    assert not ringer.ring(5, 49, 8)
    assert len(os.listdir("/dev/fd")) == before


def test_a_descriptor_is_closed_with_the_last_reference_to_it() -> None:
    read, write = os.pipe()
    held = Descriptor(write)
    also = held
    del held
    os.fstat(write)
    del also
    with pytest.raises(OSError):
        os.fstat(write)
    os.close(read)


def test_a_bell_that_is_closed_while_it_answers_stays_open_until_it_has(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, when the interpreter ends."""
    read = posix.read
    with bell_of(folder) as bell:
        bell.ring(3)

        def close_and_read(fd: int, count: int) -> bytes:
            bell.close()
            return read(fd, count)

        monkeypatch.setattr(posix, "read", close_and_read)
        assert bell.answer() == [3]
        with pytest.raises(ValueError, match="closed"):
            bell.answer()
