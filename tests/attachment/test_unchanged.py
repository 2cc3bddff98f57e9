"""What the usual look of a waiter notices: everything that a whole look is needed for."""

from __future__ import annotations

import _thread
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from asgi_ipc import clock
from asgi_ipc.attachment import unchanged as module
from asgi_ipc.attachment.unchanged import SWEPT_WITHIN, WHOLE_EVERY, Held
from asgi_ipc.attachment.upkeep import CHECK_EVERY, SWEEP_SOON
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.store.layout import (
    CLEAN,
    DIRTY,
    R_GENERATION,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_SWEEP_AT,
    W_GENERATION,
    W_TAKEN,
)

from ..compiling import needs_compiled
from ..forks import Line, child, on_linux, rests
from ..waiting import LIVENESS
from .layers import LOCKS, Make

pytestmark = on_linux


class Watch:
    """An attachment that has had a whole look, and the waiter of this thread."""

    def __init__(self, make: Make, lock: str) -> None:
        self.make, self.lock = make, lock
        self.layer = make(lock=lock)
        self.layer.receive(["c"], block=True, timeout=0.001)  # makes the waiter
        session = self.layer._core.session
        self.attachment = session.attachment
        self.store = session.store
        self.section = session.section
        self.waiter = self.attachment.local.waiter
        self.held: Held = self.waiter._held
        self.row = self.store.waiter_row(self.waiter.waiter_id)
        self.look()

    def look(self, after: float = module._TELLS + 0.02) -> None:
        """A whole look, `after` some seconds in which no file changes."""
        time.sleep(after)
        self.attachment.upkeep.check_at = 0.0
        self.attachment.upkeep.tidy_at = 0.0
        self.store.doubles[S_BURY_AT] = 0.0
        self.attachment.do_upkeep(clock.monotonic(), 60.0, self.section)

    def holds(self) -> bool:
        return self.attachment.unchanged.holds(self.held, 0) > 0

    def doze(self, seconds: float = 0.001) -> float | None:
        """Sleep on the compiled path."""
        bell, sources = self.waiter.bell.fileno(), self.layer._core.session.sources["c"]
        left: float | None = self.attachment.unchanged.dozing(self.held, bell, sources)(seconds)
        return left

    def asks(self) -> bool:
        """Whether a thread comes back from C, since something is new. True without that path."""
        return not self.attachment.unchanged.can_doze or self.doze() == 0.001


@pytest.fixture(params=LOCKS)
def watch(request: pytest.FixtureRequest, make: Make) -> Watch:
    """The compiled path is used with a mutex alone."""
    return Watch(make, request.param)


@pytest.fixture
def sleeper(make: Make) -> Watch:
    """On the compiled path."""
    return Watch(make, "mutex")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""

    def pass_by(seconds: float) -> None:
        now = clock.monotonic()
        monkeypatch.setattr(clock, "monotonic", lambda: now + seconds)

    return pass_by


def test_it_holds_while_nothing_happens(watch: Watch, later: Callable[[float], None]) -> None:
    assert watch.holds()
    for _ in range(5):
        later(CHECK_EVERY)
        before = clock.monotonic()
        assert watch.holds()
        assert watch.attachment.upkeep.check_at == before + CHECK_EVERY
        assert before < watch.store.doubles[S_BURY_AT] <= before + CHECK_EVERY


def test_a_whole_look_is_due_after_a_while(watch: Watch, later: Callable[[float], None]) -> None:
    watch.attachment.upkeep.tidy_at = clock.monotonic() + 2 * WHOLE_EVERY
    seconds = 0
    while watch.holds():
        seconds += 1
        later(CHECK_EVERY)
        watch.store.doubles[S_SWEEP_AT] = clock.monotonic() + CHECK_EVERY / 2
    assert WHOLE_EVERY - 2 <= seconds <= WHOLE_EVERY + 2


def test_the_process_that_looks_for_all_takes_no_more_whole_looks_than_others(
    watch: Watch, later: Callable[[float], None]
) -> None:
    seconds = 0
    while watch.holds():
        seconds += 1
        later(CHECK_EVERY)
        watch.store.doubles[S_SWEEP_AT] = clock.monotonic() + CHECK_EVERY / 2
        watch.store.doubles[S_BURY_AT] = 0.0
    assert seconds >= WHOLE_EVERY - 2


def test_a_whole_look_lets_a_process_look_for_all_from_then_on(watch: Watch) -> None:
    """Also if it came a little early."""
    for early in (0.0, SWEEP_SOON / 2):
        watch.attachment.upkeep.check_at = watch.attachment.upkeep.tidy_at = 0.0
        watch.store.doubles[S_BURY_AT] = clock.monotonic() + early
        assert not watch.holds()
        watch.attachment.do_upkeep(clock.monotonic(), 60.0, watch.section)
        watch.store.doubles[S_BURY_AT] = clock.monotonic() + early
        assert watch.holds()


def test_a_whole_look_is_due_when_memberships_may_end_soon(
    watch: Watch, later: Callable[[float], None]
) -> None:
    watch.attachment.upkeep.ending_at = clock.monotonic() + 1.5
    watch.attachment.unchanged.note(clock.monotonic())
    assert watch.holds()
    later(CHECK_EVERY)
    assert watch.holds()
    later(CHECK_EVERY)
    assert not watch.holds()


def test_a_late_look_and_a_clock_that_jumps_ask_for_a_whole_one(
    watch: Watch, later: Callable[[float], None]
) -> None:
    later(2.5 * CHECK_EVERY)
    assert not watch.holds()
    watch.look()
    assert watch.holds()
    later(-5.0)
    assert not watch.holds()


@needs_compiled
def test_a_thread_stays_in_c_while_nothing_happens(sleeper: Watch) -> None:
    upkeep, words = sleeper.attachment.upkeep, sleeper.store.doubles
    for bury_at in (0.0, words[S_BURY_AT]):
        words[S_BURY_AT] = bury_at
        assert sleeper.holds()  # it also lists the other processes
        words[S_BURY_AT] = bury_at
        before = clock.monotonic()
        assert sleeper.doze() == 0.0
        now = clock.monotonic()
        assert before <= upkeep.looks[0] <= now
        assert upkeep.check_at == upkeep.looks[0] + CHECK_EVERY
        assert before < words[S_BURY_AT] <= now + CHECK_EVERY
        assert sleeper.attachment.due == upkeep.looks[0] + SWEEP_SOON


@needs_compiled
def test_a_thread_in_c_is_rung(sleeper: Watch) -> None:
    sleeper.waiter.bell.ring(0)
    assert sleeper.doze(LIVENESS) is None


@needs_compiled
@pytest.mark.parametrize("raises", [False, True])
def test_a_thread_in_c_handles_signals_at_once(sleeper: Watch, raises: bool) -> None:
    handled: list[int] = []

    def handle(number: int, frame: Any) -> None:
        handled.append(number)
        sleeper.waiter.bell.ring(0)
        if raises:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        if raises:
            with pytest.raises(KeyboardInterrupt):
                sleeper.doze(LIVENESS)
        else:
            assert sleeper.doze(LIVENESS) is None
    finally:
        signal.signal(signal.SIGALRM, before)
    assert handled == [signal.SIGALRM]


@needs_compiled
def test_a_thread_in_c_comes_back_for_what_no_signal_interrupts(sleeper: Watch) -> None:
    """A signal may come just before it sleeps, or to another thread."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    timer = threading.Timer(0.01, _thread.interrupt_main, [signal.SIGALRM])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            sleeper.doze(LIVENESS)
    finally:
        timer.join()
        signal.signal(signal.SIGALRM, before)


def paths(watch: Watch) -> Any:
    return watch.attachment.segment.paths


def replace(path: str) -> None:
    with open(f"{path}.new", "wb") as file:
        file.truncate(os.stat(path).st_size)
    os.rename(f"{path}.new", path)


def forget_descriptor(watch: Watch, number: int) -> None:
    """The program closes a descriptor, and its number becomes another file's."""
    kept = os.dup(number)
    other = os.open("/dev/null", os.O_RDWR)
    os.dup2(other, number)
    os.close(other)
    if number != watch.waiter.bell.fileno():  # it cannot be polled
        assert watch.asks()
    assert not watch.holds()
    os.dup2(kept, number)
    os.close(kept)


FILES: dict[str, Callable[[Watch], object]] = {
    "the segment is removed": lambda watch: os.unlink(paths(watch).file),
    "it is moved": lambda watch: os.rename(paths(watch).file, f"{paths(watch).file}.moved"),
    "it is replaced": lambda watch: replace(paths(watch).file),
    "it is cut short": lambda watch: os.truncate(
        paths(watch).file, watch.attachment.segment.layout.size - 4096
    ),
    "it is given away": lambda watch: os.chown(paths(watch).file, 1, 1),
    "the byte locks are removed": lambda watch: os.unlink(paths(watch).members),
    "they are replaced": lambda watch: replace(paths(watch).members),
    "the directory is removed": lambda watch: shutil.rmtree(paths(watch).directory),
    "the doorbell is removed": lambda watch: os.unlink(watch.waiter.bell._path),
}


@pytest.mark.parametrize("what", FILES)
def test_what_happens_to_files_is_noticed(watch: Watch, what: str) -> None:
    if "given" in what and os.geteuid():
        pytest.skip("lacking: the rights of root")
    size = watch.attachment.segment.layout.size
    assert watch.holds()
    FILES[what](watch)
    assert watch.asks()
    assert not watch.holds()
    moved = f"{paths(watch).file}.moved"
    if os.path.exists(moved):
        os.unlink(moved)
    elif "cut" in what:
        os.truncate(paths(watch).file, size)


def test_descriptors_that_the_program_closed_are_noticed(watch: Watch) -> None:
    segment = watch.attachment.segment
    for number in (segment.fd, segment.members.fileno(), watch.waiter.bell.fileno()):
        assert watch.holds()
        forget_descriptor(watch, number)


def set_word(row_word: Callable[[Watch], int], value: int) -> Callable[[Watch], None]:
    def change(watch: Watch) -> None:
        watch.store.words[row_word(watch)] = value

    return change


STATES: dict[str, Callable[[Watch], object]] = {
    "a section was left half done": set_word(lambda _: S_DIRTY, DIRTY),
    "the waiter id is another's": set_word(lambda watch: watch.row + W_GENERATION, 9999),
    "the waiter id was given again": set_word(lambda watch: watch.row + W_TAKEN, 9999),
    "this is a fork, or it may not be used": lambda watch: setattr(watch.attachment, "due", 0.0),
    "a waiter is gone": lambda watch: watch.attachment.upkeep.orphans.append((1, 1)),
    "a drop is to be logged": lambda watch: watch.store.dropped.update({0: "c"}),
    "a loop was used": lambda watch: watch.attachment.hubs.__setitem__(watch, watch.waiter),
    "an inbox has something": lambda watch: setattr(watch.attachment.inbox("x!"), "_filled", True),
    "the doorbells of the dead are due": lambda watch: (
        setattr(watch.attachment.upkeep, "tidy_at", 1.0),
        watch.store.doubles.__setitem__(S_BURY_AT, 0.0),
    ),
    "a sweep is far overdue": lambda watch: watch.store.doubles.__setitem__(
        S_SWEEP_AT, clock.monotonic() - 2 * SWEPT_WITHIN
    ),
    "a sweep is due at a time that cannot be": lambda watch: watch.store.doubles.__setitem__(
        S_SWEEP_AT, float("nan")
    ),
}


@pytest.mark.parametrize("what", STATES)
def test_what_only_a_whole_look_can_do_is_left_to_it(watch: Watch, what: str) -> None:
    assert watch.holds()
    STATES[what](watch)
    assert watch.asks()
    assert not watch.holds()
    watch.attachment.upkeep.orphans.clear()
    watch.store.words[S_DIRTY] = 0


def test_a_sweep_of_messages_or_members_is_not_put_off(watch: Watch) -> None:
    watch.store.doubles[S_SWEEP_AT] = clock.monotonic() - 0.5
    assert watch.holds()
    watch.layer.send("c", MESSAGE)
    watch.look()
    assert watch.holds()
    watch.store.doubles[S_SWEEP_AT] = clock.monotonic() - 0.5
    assert watch.asks()
    assert not watch.holds()
    watch.layer.receive(["c"])
    watch.layer.group_add("g", "c")
    watch.look()
    assert watch.holds()
    watch.store.doubles[S_SWEEP_AT] = clock.monotonic() - 0.5
    assert watch.asks()
    assert not watch.holds()


NEW: dict[str, Callable[[Watch], object]] = {
    "a message": lambda watch: watch.layer.send("c", MESSAGE),
    "a flush": lambda watch: watch.store.words.__setitem__(
        watch.layer._core.session.sources["c"][0].target.row + R_GENERATION, 9999
    ),
    "another user": lambda watch: setattr(watch.attachment.unchanged, "_user", os.geteuid() + 1),
    "a clock that was set back": lambda watch: watch.attachment.upkeep.looks.__setitem__(0, 9e9),
    "a late look": lambda watch: watch.attachment.upkeep.looks.__setitem__(
        0, clock.monotonic() - 2.5 * CHECK_EVERY
    ),
    "a whole look is due": lambda watch: setattr(watch.attachment.unchanged, "_until", 1.0),
    "the processes are others": lambda watch: (
        setattr(watch.attachment.unchanged, "_others", (1, [], b"")),
        watch.store.doubles.__setitem__(S_BURY_AT, 0.0),
    ),
    "a test's clock": lambda watch: setattr(clock, "monotonic", lambda: 1.0),
    "the segment was left": lambda watch: watch.attachment.compiled.close(),
}


@needs_compiled
@pytest.mark.parametrize("what", NEW)
def test_a_thread_comes_back_from_c_for_what_is_new(
    sleeper: Watch, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(clock, "monotonic", clock.monotonic)  # it is restored
    assert sleeper.doze() == 0.0
    NEW[what](sleeper)
    assert sleeper.doze() == 0.001


@needs_compiled
def test_a_clock_that_is_replaced_while_a_thread_sleeps_is_noticed(
    sleeper: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper.store.doubles[S_BURY_AT] = 0.0
    assert sleeper.holds()  # it lists the other processes: no look has to do that
    fake = threading.Timer(0.01, monkeypatch.setattr, [clock, "monotonic", lambda: 1.0])
    fake.start()
    assert sleeper.doze(2.5) == 2.5  # after the first look
    fake.join()


def test_processes_that_were_listed_in_the_middle_of_a_change_are_listed_again(
    watch: Watch,
) -> None:
    """The row of one that attaches may not have been written yet."""
    unchanged, words = watch.attachment.unchanged, watch.store.words
    words[S_DIRTY] = DIRTY
    unchanged._list_others()
    words[S_DIRTY] = CLEAN
    assert unchanged._others[0] != words[S_COUNTER]
    unchanged._list_others()
    assert unchanged._others[0] == words[S_COUNTER]


def test_time_without_suspects_is_not_counted_against_the_next(
    watch: Watch, later: Callable[[float], None]
) -> None:
    suspects = watch.attachment.inbox("x!").suspects
    watch.look()
    before = suspects.time
    for _ in range(5):
        later(CHECK_EVERY)
        assert watch.holds()
    suspects.add(["a"], 1)
    later(CHECK_EVERY)
    assert not watch.holds()
    watch.look(after=0.0)
    assert suspects.time - before == pytest.approx(CHECK_EVERY, abs=0.5)


def test_files_that_just_changed_are_looked_at_again(watch: Watch) -> None:
    """A second change could have the same time."""
    os.chmod(paths(watch).file, 0o600)
    watch.look(after=0.0)
    assert not watch.holds()
    watch.look()
    assert watch.holds()


def test_a_process_that_dies_is_noticed(watch: Watch) -> None:
    def wait(line: Line) -> None:
        layer = watch.make(lock=watch.lock)
        layer.send("c", MESSAGE)
        layer.receive(["c"])
        rests(line)

    with child(wait) as process:
        process.hear()
        watch.look()
        watch.store.doubles[S_BURY_AT] = 0.0
        assert watch.holds()
        watch.store.doubles[S_BURY_AT] = 0.0
        assert watch.holds()
        watch.store.doubles[S_BURY_AT] = 0.0
        assert not watch.attachment.unchanged.can_doze or watch.doze() == 0.0
        process.kill()
        watch.store.doubles[S_BURY_AT] = 0.0
        assert watch.asks()
        assert not watch.holds()


def test_both_implementations_see_the_same(watch: Watch) -> None:
    """Each word and the user, one after the other."""
    unchanged, store = watch.attachment.unchanged, watch.store
    generation = store.words[watch.row + W_TAKEN]
    ways: list[tuple[Callable[..., bool], Any]] = [
        (
            partial(module._same, store.words),
            ((watch.row + W_GENERATION, generation), (watch.row + W_TAKEN, generation)),
        )
    ]
    if watch.attachment.compiled is not None:
        ways.append((watch.attachment.compiled.holds, watch.held.words))
    files, bell, user = unchanged._files, watch.held.bell, os.geteuid()
    for same, words in ways:
        assert same(files, bell, words, user)
        assert not same(files, bell, words, user + 1)
        for word in (W_GENERATION, W_TAKEN):
            store.words[watch.row + word] += 1
            assert not same(files, bell, words, user)
            store.words[watch.row + word] -= 1
    forget_descriptor(watch, watch.waiter.bell.fileno())


def test_no_word_is_read_once_a_file_is_another(watch: Watch) -> None:
    """It may have been cut short: reading the missing part ends the process."""

    class Unread:
        def __getitem__(self, at: int) -> int:
            raise AssertionError("it was read")

    files, user = watch.attachment.unchanged._files, os.geteuid()
    bell, words = watch.held.bell, ((S_DIRTY, 0),)
    with pytest.raises(AssertionError, match="it was read"):
        module._same(Unread(), files, bell, words, user)  # type: ignore[arg-type]
    os.utime(watch.attachment.segment.fd)  # which also changes its ctime
    assert not module._same(Unread(), files, bell, words, user)  # type: ignore[arg-type]


def test_a_look_counts_as_upkeep_for_the_next_calls(watch: Watch) -> None:
    watch.attachment.due = clock.monotonic()
    assert watch.holds()
    assert clock.monotonic() < watch.attachment.due <= clock.monotonic() + SWEEP_SOON


def test_what_wipes_the_time_of_the_next_upkeep_during_a_look_counts(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork in a signal handler does, and so does a thread that finds the segment broken."""
    same = watch.attachment.unchanged._same

    def wiped(*known: Any) -> bool:
        watch.attachment.due = 0.0
        return same(*known)

    monkeypatch.setattr(watch.attachment.unchanged, "_same", wiped)
    assert watch.holds()
    assert not watch.attachment.due
    assert not watch.holds()
