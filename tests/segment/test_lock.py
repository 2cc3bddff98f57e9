"""The two locks, without the section around them: the same answers from a mutex and from a flock.

What `lock` relies on in each libc is asked in test_libc.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import pytest

from asgi_ipc.errors import SegmentError
from asgi_ipc.segment.lock import (
    FileLock,
    Mutex,
    init_mutex,
    machine,
    mutex_holder,
    robust_mutexes,
)
from asgi_ipc.segment.procfs import process_of
from asgi_ipc.store.layout import H_LOCK, LOCK_BYTES, PAGE, WORD

from ..forks import Line, child, in_child, on_linux, rests
from ..waiting import in_threads, until

Lock = Union[Mutex, FileLock]

needs_robust = pytest.mark.skipif(not robust_mutexes(), reason="lacking: robust mutexes")


@pytest.fixture
def memory() -> mmap.mmap:
    """Memory that forked processes share, with a mutex in it."""
    memory = mmap.mmap(-1, PAGE)
    if robust_mutexes():
        init_mutex(memory, H_LOCK * WORD)
    return memory


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "section.lock")


@pytest.fixture(params=[pytest.param("mutex", marks=needs_robust), "file"])
def lock(request: pytest.FixtureRequest, memory: mmap.mmap, path: str) -> Iterator[Lock]:
    yield Mutex(memory, H_LOCK * WORD) if request.param == "mutex" else FileLock(path, 0o600)


def hold(lock: Lock) -> None:
    assert lock.trylock(lock.handle) == 0


def test_a_lock_is_held_by_one(lock: Lock) -> None:
    hold(lock)
    assert in_threads([lambda: lock.trylock(lock.handle)]) == [errno.EBUSY]
    lock.unlock(lock.handle)
    hold(lock)
    lock.unlock(lock.handle)


@on_linux
def test_the_holder_is_named(lock: Lock) -> None:
    def rest_holding(line: Line) -> None:
        hold(lock)
        rests(line)

    assert lock.holder() == 0
    with child(rest_holding) as process:
        process.hear()
        assert process_of(lock.holder()) == process.pid
        process.kill()
    assert lock.holder() == 0
    assert lock.trylock(lock.handle) == (errno.EOWNERDEAD if isinstance(lock, Mutex) else 0)
    lock.consistent(lock.handle)
    lock.unlock(lock.handle)  # or glibc's list of held mutexes leads to memory that is gone


@needs_robust
def test_the_holder_is_named_in_a_copy_of_a_mutex(memory: mmap.mmap) -> None:
    lock = Mutex(memory, H_LOCK * WORD)
    place = slice(H_LOCK * WORD, H_LOCK * WORD + LOCK_BYTES)
    assert mutex_holder(memory[place]) == 0
    hold(lock)
    assert lock.mine() and mutex_holder(memory[place]) == lock.holder() != 0
    assert in_threads([lock.mine]) == [False]
    lock.unlock(lock.handle)
    assert not lock.lost() and not lock.mine()


def test_a_mutex_of_this_machine_is_told_from_others() -> None:
    assert machine() == in_child(machine)
    assert machine() != 0


# -- the descriptors of a file lock ---------------------------------------------------------------


def use(lock: Lock) -> None:
    hold(lock)
    lock.unlock(lock.handle)


def descriptors(path: str) -> int:
    """How many descriptors of this process are open for a file."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}") == path
        except OSError:
            pass
    return found


@on_linux
def test_a_thread_opens_the_file_lock_once(path: str) -> None:
    lock = FileLock(path, 0o600)
    for _ in range(5):
        use(lock)
    assert descriptors(path) == 1


@on_linux
def test_threads_that_ended_leave_no_descriptor_of_the_file_lock(path: str) -> None:
    lock = FileLock(path, 0o600)
    for _ in range(20):
        in_threads([lambda: use(lock)])
    until(lambda: descriptors(path) <= 1)


def test_a_lock_that_the_system_refuses_is_an_error_of_this_package(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FileLock(path, 0o600)

    def refuses(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr("asgi_ipc.segment.lock.fcntl.flock", refuses)
        for _ in range(2):
            with pytest.raises(SegmentError, match="cannot take the lock .*No locks available"):
                lock.trylock(path)
    use(lock)
    lock.close()


@on_linux
def test_a_file_lock_that_is_closed_leaves_no_descriptor(path: str) -> None:
    lock = FileLock(path, 0o600)
    use(lock)
    lock.close()
    assert descriptors(path) == 0


@needs_robust
def test_a_death_is_reported_as_by_the_kernel(memory: mmap.mmap) -> None:
    mutex = Mutex(memory, H_LOCK * WORD)
    dead = next(pid for pid in range(2**22 - 1, 1, -1) if not process_of(pid))

    def die_unreported(line: Line) -> None:
        hold(mutex)
        mutex._futex.value = dead

    with child(die_unreported) as process:
        process.hear()
        process.wait()
    assert mutex.trylock(mutex.handle) == errno.EBUSY
    mutex.report_death(dead - 1)  # who does not hold it
    assert mutex.trylock(mutex.handle) == errno.EBUSY
    mutex.report_death(dead)
    assert mutex.trylock(mutex.handle) == errno.EOWNERDEAD
    assert mutex.consistent(mutex.handle) == 0
    mutex.unlock(mutex.handle)
    use(mutex)


@needs_robust
@on_linux
def test_a_holder_is_known_at_whatever_address_it_took_the_mutex(tmp_path: Path) -> None:
    """A process may have mapped a segment more than once."""
    with open(tmp_path / "segment", "w+b") as file:
        file.truncate(2 * PAGE)
        maps = [mmap.mmap(file.fileno(), 2 * PAGE) for _ in range(2)]
    init_mutex(maps[0], H_LOCK * WORD)
    init_mutex(maps[0], PAGE)
    first, second = (Mutex(memory, H_LOCK * WORD) for memory in maps)
    neighbour = Mutex(maps[1], PAGE)
    me = threading.get_native_id()
    assert first.same(second) and second.same(first) and not first.same(neighbour)
    assert not first.held_by(me) and not second.held_by(me)
    hold(first)
    assert first.held_by(me) and second.held_by(me) and not neighbour.held_by(me)
    hold(neighbour)  # it stands before the other in the list of this thread
    assert first.held_by(me) and second.held_by(me)
    second.unlock(second.handle)
    assert not first.held_by(me) and not second.held_by(me) and neighbour.held_by(me)
    neighbour.unlock(neighbour.handle)


@needs_robust
def test_a_mutex_that_nobody_can_take_is_renewed(memory: mmap.mmap) -> None:
    mutex = Mutex(memory, H_LOCK * WORD)

    def die_holding(line: Line) -> None:
        mutex.trylock(mutex.handle)

    with child(die_holding) as process:
        process.hear()
        process.wait()
    assert mutex.trylock(mutex.handle) == errno.EOWNERDEAD
    mutex.unlock(mutex.handle)  # without making it consistent
    assert mutex.lost() and mutex.trylock(mutex.handle) == errno.ENOTRECOVERABLE
    mutex.restore()
    assert not mutex.lost() and mutex.holder() == 0
    assert mutex.trylock(mutex.handle) == 0
    assert mutex.trylock(mutex.handle) in (errno.EDEADLK, errno.EBUSY)
    mutex.unlock(mutex.handle)
    assert mutex.holder() == 0
