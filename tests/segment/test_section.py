"""The section around every operation: who holds the lock when a process dies, stops, raises or
calls from inside a call, and that none of this leaves the lock taken."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asgi_ipc.errors import (
    ChannelFull,
    CorruptStore,
    LimitReached,
    LockBusy,
    LockTimeout,
    Reentered,
)
from asgi_ipc.segment import lock as lock_module
from asgi_ipc.segment import section as section_module
from asgi_ipc.segment.lock import FileLock, Mutex, init_mutex, machine, robust_mutexes
from asgi_ipc.segment.procfs import process_of
from asgi_ipc.segment.section import Waits, complaint, make_section
from asgi_ipc.store.layout import DIRTY, H_LOCK, PAGE, S_DIRTY, WORD

from ..forks import Line, bounded, child, children, in_child, on_linux, rests
from ..reliability.stepping import is_inert
from ..waiting import LIVENESS, in_threads

COUNT = 100  # a word of the shared memory that tests count in


class Shared:
    """Memory and a lock that forked processes share. Each process has its own lock object."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.memory = mmap.mmap(-1, PAGE)
        self.words = memoryview(self.memory).cast("Q")
        self.path = str(folder / "section.lock")
        self.recoveries: list[int] = []  # what the dirty word was, in this process
        self.renewals: list[int] = []
        if kind == "mutex":
            init_mutex(self.memory, H_LOCK * WORD)
        self.lock = self.make_lock()

    def make_lock(self) -> Any:
        if self.kind == "mutex":
            return Mutex(self.memory, H_LOCK * WORD)
        return FileLock(self.path, 0o600)

    def section(
        self,
        patience: float = LIVENESS,
        timeout: float | None = None,
        renew: Callable[[int], bool] | None = None,
        lock: Any = None,
    ) -> Callable[..., Any]:
        """A section of the calling process."""

        def recover() -> None:
            self.recoveries.append(self.words[S_DIRTY])
            self.words[S_DIRTY] = 0

        def never(holder: int) -> bool:
            self.renewals.append(holder)
            return False

        return make_section(
            lock or self.lock,
            self.words,
            recover,
            Waits(patience, patience if timeout is None else timeout),
            renew or never,
        )

    def forked(self) -> Shared:
        """In a child: the same, with its own lock object."""
        self.lock = self.make_lock()
        return self

    def is_free(self) -> bool:
        """Whether another process gets the lock at once."""

        def attempt() -> bool:
            lock = self.make_lock()
            free = lock.trylock(lock.handle) in (0, errno.EOWNERDEAD)
            lock.consistent(lock.handle)
            lock.unlock(lock.handle)
            return free

        return bool(in_child(attempt))

    def count(self, number: int) -> None:
        """An operation that goes wrong if two processes run it at once."""
        for _ in range(number):
            value = self.words[COUNT]
            for _ in range(20):
                pass
            self.words[COUNT] = value + 1


KINDS = [
    pytest.param(
        "mutex",
        marks=pytest.mark.skipif(not robust_mutexes(), reason="lacking: robust mutexes"),
    ),
    "file",
]


@pytest.fixture(params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    yield Shared(request.param, tmp_path)


@pytest.fixture
def mutex(tmp_path: Path) -> Shared:
    if not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    return Shared("mutex", tmp_path)


def holding(shared: Shared, dirty: int = 0) -> Callable[[Line], None]:
    """What a child does to enter a section and to stay there until it is told to go on."""

    def hold(line: Line) -> None:
        def operation() -> None:
            shared.words[S_DIRTY] = dirty
            line.say("inside")
            line.hear()
            shared.words[S_DIRTY] = 0

        shared.forked().section()(operation)

    return hold


def start_holding(shared: Shared, dirty: int = 0) -> Any:
    return child(holding(shared, dirty))


# -- one at a time --------------------------------------------------------------------------------


def test_a_section_returns_what_the_operation_does(shared: Shared) -> None:
    assert shared.section()(divmod, 17, 5) == (3, 2)


def test_inside_the_lock_is_held_and_outside_it_is_not(shared: Shared) -> None:
    assert not shared.section()(shared.is_free)
    assert shared.is_free()


def test_processes_take_turns(shared: Shared) -> None:
    def count(line: Line) -> None:
        section = shared.forked().section()
        rests(line)
        for _ in range(200):
            section(shared.count, 5)

    with children([count] * 4) as counting:
        for process in counting:
            process.hear()
        for process in counting:
            process.say()
        for process in counting:
            process.hear()
    assert shared.words[COUNT] == 4 * 200 * 5


def test_threads_take_turns(shared: Shared) -> None:
    section = shared.section()

    def count() -> None:
        for _ in range(200):
            section(shared.count, 5)

    in_threads([count] * 4)
    assert shared.words[COUNT] == 4 * 200 * 5


def test_the_holder_is_named(shared: Shared) -> None:
    with start_holding(shared) as process:
        process.hear()
        holder = shared.lock.holder()
        assert process_of(holder) == process.pid
        process.say()
        process.hear()
    assert shared.lock.holder() == 0


# -- death ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dirty", [0, DIRTY])
def test_the_lock_of_a_killed_process_is_released(shared: Shared, dirty: int) -> None:
    with start_holding(shared, dirty) as process:
        process.hear()
        process.kill()
    with bounded():
        assert shared.section()(divmod, 17, 5) == (3, 2)
    assert shared.is_free()


def test_the_next_after_a_killed_process_recovers_first(shared: Shared) -> None:
    with start_holding(shared, DIRTY) as process:
        process.hear()
        process.kill()
    assert shared.section()(lambda: shared.words[S_DIRTY]) == 0
    assert shared.recoveries == [DIRTY]


def test_the_next_after_a_process_that_was_killed_clean_does_not_recover(shared: Shared) -> None:
    with start_holding(shared) as process:
        process.hear()
        process.kill()
    shared.section()(int)
    assert shared.recoveries == []


def test_processes_that_wait_when_the_holder_is_killed_go_on(shared: Shared) -> None:
    def wait(line: Line) -> int:
        section = shared.forked().section()
        rests(line)
        return int(section(os.getpid))

    with start_holding(shared) as holder, children([wait] * 3) as waiting:
        holder.hear()
        for process in waiting:
            process.hear()
            process.say()
        holder.kill()
        assert [process.hear() for process in waiting] == [process.pid for process in waiting]


def test_the_lock_survives_many_deaths(shared: Shared) -> None:
    for _ in range(20):
        with start_holding(shared, DIRTY) as process:
            process.hear()
            process.kill()
    shared.section()(int)
    assert shared.is_free()


def test_recovery_that_is_killed_is_left_to_the_next(shared: Shared) -> None:
    shared.words[S_DIRTY] = DIRTY

    def die_recovering(line: Line) -> None:
        lock = shared.make_lock()

        def recover() -> None:
            line.say("recovering")
            line.hear()

        make_section(lock, shared.words, recover, Waits(LIVENESS, LIVENESS))(int)

    with child(die_recovering) as process:
        process.hear()
        process.kill()
    shared.section()(int)
    assert shared.recoveries == [DIRTY]


def test_a_thread_that_ends_holding_the_mutex_is_like_a_death(mutex: Shared) -> None:
    in_threads([lambda: mutex.lock.trylock(mutex.lock.handle)])
    with bounded():
        assert mutex.section()(int) == 0
    assert mutex.is_free()


# -- a mutex that nobody can recover, or whose holder's death went unreported ---------------------


def make_unrecoverable(shared: Shared) -> None:
    """Unlock after a death without declaring the state consistent."""

    def die_holding(line: Line) -> None:
        shared.lock.trylock(shared.lock.handle)

    with child(die_holding) as process:
        process.hear()
        process.wait()
    assert shared.lock.trylock(shared.lock.handle) == errno.EOWNERDEAD
    shared.lock.unlock(shared.lock.handle)


def test_a_mutex_that_cannot_be_recovered_is_renewed(mutex: Shared) -> None:
    make_unrecoverable(mutex)
    renewed = []

    def renew(holder: int) -> bool:
        renewed.append(holder)
        init_mutex(mutex.memory, H_LOCK * WORD)
        return True

    assert mutex.section(renew=renew)(divmod, 17, 5) == (3, 2)
    assert renewed == [0]
    assert mutex.is_free()


def test_a_mutex_that_cannot_be_made_anew_is_an_error(mutex: Shared) -> None:
    make_unrecoverable(mutex)

    def attempt() -> str:
        with bounded(10.0):
            try:
                mutex.section(patience=0.05)(int)
            except Exception as error:
                return type(error).__name__
        return "none"

    assert in_child(attempt) == "LockLost"


@pytest.mark.parametrize("timeout", [0.02, LIVENESS])
def test_a_death_that_was_not_reported_is_found_out_when_patience_ends(
    mutex: Shared, timeout: float
) -> None:
    """As before Linux 5.18 when the OOM killer had chosen the holder. Also by an asyncio call,
    which waits in stretches."""
    taken = next(pid for pid in range(2**22 - 1, 1, -1) if not process_of(pid))
    place = H_LOCK * WORD + (0 if machine() >> 48 == 1 else 4)
    mutex.memory[place : place + 4] = struct.pack("=I", taken)
    asked = []

    def renew(holder: int) -> bool:
        asked.append(holder)
        init_mutex(mutex.memory, H_LOCK * WORD)
        return True

    section = mutex.section(patience=0.02, timeout=timeout, renew=renew)
    assert section(divmod, 17, 5) == (3, 2)
    assert asked == [taken]


# -- a holder that does not move ------------------------------------------------------------------


def test_a_mutex_that_only_says_busy_to_its_own_holder_is_no_deadlock(
    mutex: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """musl answers EBUSY where glibc answers EDEADLK."""
    real = mutex.lock.trylock

    def as_musl(handle: Any) -> int:
        code = int(real(handle))
        return errno.EBUSY if code == errno.EDEADLK else code

    monkeypatch.setattr(mutex.lock, "trylock", as_musl)
    section = mutex.section(patience=LIVENESS, timeout=LIVENESS)

    def inner() -> None:
        with pytest.raises(Reentered):
            section(int)

    section(inner)
    assert real(mutex.lock.handle) == 0  # as if a call had lost track of it
    assert section(lambda: "taken over") == "taken over"


def test_a_holder_that_is_stopped_is_named_when_time_is_out(shared: Shared) -> None:
    with start_holding(shared) as process:
        process.hear()
        process.kill(signal.SIGSTOP)
        with pytest.raises(LockTimeout, match=rf"\b{process.pid}\b.*SIGCONT") as caught:
            shared.section(patience=0.05)(int)
        assert not isinstance(caught.value, LockBusy)
        assert isinstance(caught.value, TimeoutError)
        assert [process_of(holder) for holder in shared.renewals] == [process.pid]
        process.kill(signal.SIGCONT)
        process.say()
        process.hear()
    assert shared.section(patience=0.05)(divmod, 17, 5) == (3, 2)


def test_a_lock_that_is_released_when_the_time_is_out_is_taken(shared: Shared) -> None:
    lock, busy = shared.make_lock(), [True]
    trylock = lock.trylock

    def nobody() -> int:
        busy.clear()
        return 0

    lock.trylock = lambda handle: errno.EBUSY if busy else trylock(handle)
    lock.holder = nobody
    assert shared.section(patience=0.02, lock=lock)(divmod, 17, 5) == (3, 2)
    assert shared.is_free()


def test_a_stretch_of_waiting_that_is_over_is_lock_busy(shared: Shared) -> None:
    with start_holding(shared) as process:
        process.hear()
        with pytest.raises(LockBusy) as caught:
            shared.section(patience=0.02, timeout=10.0)(int)
        assert process_of(caught.value.holder) == process.pid
        process.say()
        process.hear()


def test_the_process_of_a_thread_that_holds_the_mutex_is_named(mutex: Shared) -> None:
    def hold_in_thread(line: Line) -> None:
        in_threads([lambda: holding(mutex)(line)])

    with child(hold_in_thread) as process:
        process.hear()
        assert mutex.lock.holder() != process.pid
        with pytest.raises(LockTimeout, match=rf"\b{process.pid}\b"):
            mutex.section(patience=0.02)(int)
        process.say()
        process.hear()


def test_waiting_for_the_lock_does_not_use_up_the_processor(shared: Shared) -> None:
    with start_holding(shared) as process:
        process.hear()
        tries = []
        lock = shared.make_lock()
        trylock = lock.trylock

        def counted(handle: Any) -> int:
            tries.append(handle)
            return int(trylock(handle))

        lock.trylock = counted
        with pytest.raises(LockTimeout):
            shared.section(patience=0.2, lock=lock)(int)
        process.say()
        process.hear()
    assert 30 < len(tries) < 700  # 30 in a row, and then less than one in 300 microseconds


def test_waiting_for_the_lock_ends_although_the_clock_stands_still(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in tests that replace the clock."""
    with start_holding(shared) as process:
        process.hear()
        still = SimpleNamespace(monotonic=lambda: 1000.0)
        monkeypatch.setattr(section_module, "clock", still)
        with bounded(), pytest.raises(LockTimeout):
            shared.section(patience=0.05)(int)
        process.say()
        process.hear()


@on_linux
def test_the_complaint_names_the_program() -> None:
    name = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")[0].decode()
    text = complaint(os.getpid(), 2.5)
    assert f"process {os.getpid()}" in text and name in text and "2.5 s" in text


def test_the_complaint_without_a_holder_names_nobody() -> None:
    assert "nobody" in complaint(0, 10.0)


# -- exceptions -----------------------------------------------------------------------------------


def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ChannelFull("full"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_passes_and_the_lock_is_released(shared: Shared, error: Any) -> None:
    with pytest.raises(type(error)) as caught:
        shared.section()(fails, error)
    assert caught.value is error
    assert shared.is_free()


def test_after_an_exception_in_the_middle_the_next_call_recovers(shared: Shared) -> None:
    def half_done() -> None:
        shared.words[S_DIRTY] = DIRTY
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shared.section()(half_done)
    assert shared.section()(lambda: shared.words[S_DIRTY]) == 0
    assert shared.recoveries == [DIRTY]


def test_an_exception_in_recovery_leaves_it_due(shared: Shared) -> None:
    def recover() -> None:
        raise CorruptStore("not repaired")

    shared.words[S_DIRTY] = DIRTY
    section = make_section(shared.lock, shared.words, recover, Waits(1.0, 1.0))
    for _ in range(2):
        with pytest.raises(CorruptStore, match="not repaired"):
            section(int)
    assert shared.is_free()
    assert shared.words[S_DIRTY] == DIRTY


@pytest.mark.parametrize("error", [IndexError("out of bounds"), struct.error("too short")])
def test_a_reference_out_of_the_memory_is_a_corrupt_store(shared: Shared, error: Any) -> None:
    with pytest.raises(CorruptStore, match="flush") as caught:
        shared.section()(fails, error)
    assert caught.value.__cause__ is error
    assert shared.is_free()


class Interruption(BaseException):
    """What a signal handler raises."""


def interrupted_at(step: int, call: Callable[[], Any]) -> bool:
    """Raise Interruption before the `step`-th bytecode of section.py and lock.py in `call`.

    False if it runs fewer bytecodes.
    """
    ours = section_module.__file__, lock_module.__file__
    steps = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename not in ours:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not is_inert(frame):
            steps += 1
            if steps == step:
                sys.settrace(None)
                raise Interruption
        return trace

    before = sys.gettrace()
    gc.disable()  # a finalizer that runs meanwhile is not what is interrupted here
    # Before settrace: or the first run sees no opcode (Python 3.12).
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    except Interruption:
        return True
    finally:
        sys.settrace(before)
        gc.enable()
    return False


@pytest.mark.parametrize("busy", [False, True])
def test_an_interruption_at_any_bytecode_leaves_the_lock_free(shared: Shared, busy: bool) -> None:
    """A signal handler can raise between any two of them. With and without waiting first."""
    lock = shared.make_lock()
    trylock = lock.trylock
    answers: list[int] = []

    def first_busy(handle: Any) -> int:
        return answers.pop() if answers else int(trylock(handle))

    lock.trylock = first_busy
    section = shared.section(lock=lock)
    done: list[int] = []

    def interrupt_everywhere() -> int:
        step = 1
        answers.extend([errno.EBUSY] * 32 * busy)
        while interrupted_at(step, partial(section, done.append, step)):
            assert lock.holder() == 0, f"held after an interruption at bytecode {step}"
            step += 1
            answers[:] = [errno.EBUSY] * 32 * busy
        return step

    [steps] = in_threads([interrupt_everywhere])
    assert steps > 20 + 100 * busy
    assert done[-1] == steps
    assert shared.is_free()


def test_an_interruption_at_any_bytecode_after_a_death_leaves_the_lock_free(mutex: Shared) -> None:
    section = mutex.section()

    def interrupt(step: int) -> bool:
        with start_holding(mutex) as process:
            process.hear()
            process.kill()
        interrupted = interrupted_at(step, partial(section, int))
        assert mutex.is_free(), f"not free after an interruption at bytecode {step}"
        return interrupted

    steps = 1
    while in_threads([partial(interrupt, steps)]) == [True]:
        steps += 1
    assert steps > 20


# -- calls from inside a call ---------------------------------------------------------------------


class Handler:
    """A signal handler that makes a call. An operation calls `run` to trigger it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.answers: list[Any] = []

    def __call__(self, number: int, frame: Any) -> None:
        try:
            self.answers.append(self.call())
        except Exception as error:
            self.answers.append(error)

    def run(self) -> None:
        before = signal.signal(signal.SIGUSR1, self)
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_a_call_from_a_signal_handler_inside_a_call_is_refused(shared: Shared) -> None:
    section = shared.section()
    handler = Handler(lambda: section(int))

    def operation() -> str:
        shared.words[S_DIRTY] = DIRTY
        handler.run()
        assert not shared.is_free()
        shared.words[S_DIRTY] = 0
        return "done"

    assert section(operation) == "done"
    [answer] = handler.answers
    assert isinstance(answer, Reentered) and isinstance(answer, RuntimeError)
    assert shared.recoveries == []
    assert shared.is_free()


def test_a_refused_call_changes_nothing_for_the_outer_one_however_often(shared: Shared) -> None:
    section = shared.section()
    handler = Handler(lambda: section(shared.count, 1))

    def operation() -> None:
        for _ in range(5):
            handler.run()
        shared.count(1)

    section(operation)
    assert [type(answer) for answer in handler.answers] == [Reentered] * 5
    assert shared.words[COUNT] == 1
    assert shared.is_free()


def test_a_call_through_another_section_of_the_same_lock_is_refused_too(shared: Shared) -> None:
    """Each layer of a process has its own section, with its own patience."""
    other = shared.section(patience=0.1)
    handler = Handler(lambda: other(int))
    shared.section()(handler.run)
    assert [type(answer) for answer in handler.answers] == [Reentered]
    assert shared.is_free()


def test_a_call_into_another_segment_is_none_from_inside(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Shared(shared.kind, tmp_path / "other")
    handler = Handler(lambda: other.section()(divmod, 17, 5))
    shared.section()(handler.run)
    assert handler.answers == [(3, 2)]
    assert shared.is_free() and other.is_free()


def test_a_lost_lock_of_another_segment_is_taken_over_inside_a_call(
    shared: Shared, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Shared(shared.kind, tmp_path / "other")

    def operation() -> tuple[int, int]:
        assert other.lock.trylock(other.lock.handle) == 0  # as if a call had lost track of it
        return other.section()(divmod, 17, 5)  # type: ignore[no-any-return]

    assert shared.section()(operation) == (3, 2)
    assert shared.is_free() and other.is_free()


def test_a_call_from_del_inside_a_call_is_refused(shared: Shared) -> None:
    section = shared.section()
    handler = Handler(lambda: section(int))

    class Dropped:
        def __del__(self) -> None:
            handler(0, None)

    def operation() -> None:
        dropped = Dropped()
        del dropped

    section(operation)
    assert [type(answer) for answer in handler.answers] == [Reentered]
    assert shared.is_free()


def test_a_call_by_another_thread_inside_a_call_just_waits(shared: Shared) -> None:
    section = shared.section()
    inside, go_on = threading.Event(), threading.Event()

    def first() -> str:
        def operation() -> str:
            inside.set()
            assert go_on.wait(LIVENESS)
            return "first"

        return str(section(operation))

    def second() -> str:
        assert inside.wait(LIVENESS)
        threading.Timer(0.01, go_on.set).start()
        return str(section(lambda: "second"))

    assert in_threads([first, second]) == ["first", "second"]


def call_in(function: Callable[[Any], Any], when: str, handler: Handler) -> Callable[[Any], Any]:
    """`function`, with the handler run right before or right after it, once."""
    left = [handler]

    def wrapped(handle: Any) -> Any:
        if left and when == "before":
            left.pop().run()
        code = function(handle)
        if left and when == "after":
            left.pop().run()
        return code

    return wrapped


@pytest.mark.parametrize("call", [lambda: 5, lambda: fails(LimitReached("no room"))])
@pytest.mark.parametrize(("what", "when"), [("trylock", "before"), ("unlock", "after")])
def test_a_call_from_a_handler_beside_the_held_part_leaves_the_lock_free(
    shared: Shared, what: str, when: str, call: Callable[[], Any]
) -> None:
    """The signal comes while the outer call is on the stack and does not hold the lock."""
    inner = shared.section()
    handler = Handler(lambda: inner(call))
    setattr(shared.lock, what, call_in(getattr(shared.lock, what), when, handler))
    assert shared.section()(divmod, 17, 5) == (3, 2)
    assert len(handler.answers) == 1 and not isinstance(handler.answers[0], Reentered)
    assert shared.lock.holder() == 0
    assert shared.is_free()


def test_a_lock_that_an_earlier_call_lost_track_of_is_taken_over(shared: Shared) -> None:
    assert shared.lock.trylock(shared.lock.handle) == 0
    assert shared.section()(divmod, 17, 5) == (3, 2)
    assert shared.is_free()
