"""A receive that follows one that waited in vain: it takes a way of its own, with fewer steps
(`ThreadWaiter.listen`). It must keep every promise of the usual one."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc import segment
from asgi_ipc.aio import thread
from asgi_ipc.aio.receiving import Receiving
from asgi_ipc.aio.thread import ThreadWaiter, quiet_waiter
from asgi_ipc.attachment.unchanged import Unchanged
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.conformance.blocking import NOTHING
from asgi_ipc.errors import LockTimeout, SegmentVanished
from asgi_ipc.store.layout import Q_WAITERS, W_GENERATION, WAITER_SET_WORDS

from ..compiling import needs_compiled
from ..reliability.stepping import Stepper
from ..waiting import LIVENESS, until

pytestmark = needs_compiled

SHORT = 0.002


class Listener:
    """A layer whose thread has waited in vain."""

    def __init__(self, prefix: str) -> None:
        self.layer = asgi_ipc.IPCChannelLayer(prefix)
        assert self.receive(SHORT) == NOTHING
        self.session: Any = self.layer._core.session
        self.store = self.session.store
        self.source = self.session.sources["c"][0]
        self.waiter = self.session.attachment.local.waiter
        # No file changes any more: a look finds nothing new.
        until(lambda: (self.look(), self.doze() == 0.0)[1])
        until(lambda: self.receive(SHORT) == NOTHING and self.is_quiet())

    def receive(self, seconds: float = LIVENESS) -> Any:
        return self.layer.receive(["c"], block=True, timeout=seconds)

    def look(self) -> None:
        self.session.attachment.upkeep.check_at = self.session.attachment.due = 0.0
        self.receive(SHORT)

    def doze(self) -> Any:
        bell, unchanged = self.waiter.bell.fileno(), self.session.attachment.unchanged
        return unchanged.dozing(self.waiter._held, bell, [self.source])(SHORT)

    def is_quiet(self) -> bool:
        return quiet_waiter(self.session, self.session.sources["c"]) is not None

    def parked(self) -> bool:
        at = self.source.target.row + Q_WAITERS
        return any(self.store.words[at : at + WAITER_SET_WORDS])

    def put_without_a_ring(self) -> None:
        """As a sender that is killed before it rings."""
        target, body, now = self.layer._core._prepared(self.session, "c", MESSAGE)
        self.session.section(self.store.put, target, body, now)


@pytest.fixture
def listener(prefix: str) -> Iterator[Listener]:
    found = Listener(prefix)
    yield found
    found.layer.close()


def soon(call: Callable[[], Any], seconds: float = 0.02) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


@pytest.fixture
def no_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("it took the long way")

    monkeypatch.setattr(Receiving, "receive", fail)


def test_one_that_hears_nothing_leaves_nothing(listener: Listener, no_long_way: None) -> None:
    for _ in range(3):
        assert listener.receive(SHORT) == NOTHING
        assert listener.is_quiet() and not listener.parked()


@pytest.mark.parametrize("seconds", [0, -1, -0.5])
def test_one_that_has_no_time_left_does_not_wait(
    listener: Listener, no_long_way: None, seconds: float
) -> None:
    late = soon(lambda: listener.layer.send("c", MESSAGE), LIVENESS)
    try:
        assert listener.receive(seconds) == NOTHING
    finally:
        late.cancel()
    assert not listener.parked()


def test_what_is_there_is_taken_at_once(listener: Listener, no_long_way: None) -> None:
    listener.layer.send("c", MESSAGE)
    assert listener.receive() == ("c", MESSAGE)
    assert not listener.parked()


def test_a_message_wakes_it(listener: Listener, prefix: str, no_long_way: None) -> None:
    timer = soon(lambda: listener.layer.send("c", MESSAGE))
    assert listener.receive() == ("c", MESSAGE)
    timer.join()
    assert not listener.parked() and not listener.is_quiet()


def test_a_ring_for_which_another_was_quicker_is_no_end(listener: Listener) -> None:
    def ring_twice() -> None:
        listener.waiter.bell.ring(listener.source.place)
        timer = soon(lambda: listener.layer.send("c", MESSAGE))
        timer.join()

    timer = soon(ring_twice)
    assert listener.receive() == ("c", MESSAGE)
    timer.join()
    assert not listener.parked()


def test_a_message_that_nobody_rings_for_is_found_by_a_look(listener: Listener) -> None:
    timer = soon(listener.put_without_a_ring)
    assert listener.receive() == ("c", MESSAGE)
    timer.join()
    assert not listener.parked()


def test_a_message_that_comes_last_of_all_is_taken(
    listener: Listener, no_long_way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look."""
    doze = listener.waiter._doze

    def dozed(seconds: float) -> Any:
        left = doze(seconds)
        listener.put_without_a_ring()
        return left

    monkeypatch.setattr(listener.waiter, "_doze", dozed)
    assert listener.receive(SHORT) == ("c", MESSAGE)
    assert not listener.parked()


def test_it_notices_that_the_segment_was_removed(listener: Listener, prefix: str) -> None:
    timer = soon(lambda: segment.destroy(prefix))
    with pytest.raises(SegmentVanished):
        listener.receive()
    timer.join()


def test_it_gets_another_doorbell_where_nobody_can_ring_its_own(listener: Listener) -> None:
    waiter, bell = listener.waiter, listener.waiter.bell
    row = listener.store.waiter_row(waiter.waiter_id)

    def damage_and_send() -> None:
        listener.store.words[row + W_GENERATION] = 9999
        until(lambda: waiter.bell not in (bell, None) and listener.parked())
        listener.layer.send("c", MESSAGE)

    timer = soon(damage_and_send)
    assert listener.receive() == ("c", MESSAGE)
    timer.join()


def test_an_exception_of_a_signal_handler_leaves_nothing_parked(listener: Listener) -> None:
    def interrupt(number: int, frame: Any) -> None:
        if listener.parked():
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # it was held up before it slept

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            listener.receive()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not listener.parked() and not listener.is_quiet()


# Interrupted between the two, a call makes a coroutine and does not run it.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_interruption_at_any_instruction_leaves_nothing_parked(listener: Listener) -> None:
    """No message that another receiver could take is kept from it, and the thread goes on."""
    code = ThreadWaiter.listen.__code__
    wanted = 0

    def interrupt(frame: Any, number: int) -> None:
        if number == wanted:
            raise KeyboardInterrupt

    while True:
        wanted += 1
        until(lambda: listener.receive(SHORT) == NOTHING and listener.is_quiet())
        stepper = Stepper(interrupt, only=(code.co_filename, code.co_firstlineno))
        try:
            stepper.run(lambda: listener.receive(SHORT))
        except KeyboardInterrupt:
            assert not listener.parked(), wanted
            continue
        break
    assert wanted > 40
    listener.layer.send("c", MESSAGE)
    assert listener.receive() == ("c", MESSAGE)


def test_an_exception_before_the_long_way_has_begun_leaves_nothing_parked(
    listener: Listener, no_long_way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener.waiter, "_doze", lambda seconds: seconds)  # something is new
    with pytest.raises(AssertionError, match="the long way"):
        listener.receive()
    assert not listener.parked()


def test_it_comes_back_from_c_every_few_seconds(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only in Python does it notice an exception that another thread raises in it."""
    asked: list[float] = []

    def dozed(seconds: float) -> float:
        asked.append(seconds)
        return 0.0  # all of them are over

    monkeypatch.setattr(listener.waiter, "_doze", dozed)
    assert listener.receive(2.5 * thread._IN_C) == NOTHING
    assert max(asked) <= thread._IN_C < sum(asked)


def test_a_child_that_a_signal_handler_forks_attaches_for_itself(listener: Listener) -> None:
    parent = os.getpid()

    def fork(number: int, frame: Any) -> None:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            listener.layer.send("c", MESSAGE)

    before = signal.signal(signal.SIGALRM, fork)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            found = listener.receive(3.0)
        finally:
            if os.getpid() != parent:
                attached = listener.layer._core.session is not listener.session
                os._exit(0 if attached else 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found == ("c", MESSAGE)


def test_a_lock_that_stays_busy_does_not_end_it(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []

    def busy(*_: Any) -> Any:
        tries.append(1)
        listener.put_without_a_ring()
        raise LockTimeout("somebody holds it")

    monkeypatch.setattr(listener.waiter, "_look", busy)
    monkeypatch.setattr(listener.waiter, "_doze", lambda seconds: seconds)  # something is new
    assert listener.receive() == ("c", MESSAGE)
    assert tries and not listener.parked()


def test_another_channel_and_another_thread_take_the_long_way(listener: Listener) -> None:
    receive = listener.layer.receive
    # If the thread is held up for so long, the time of a receive is over before it waits.
    until(lambda: receive(["d"], block=True, timeout=SHORT) == NOTHING and not listener.is_quiet())
    until(lambda: listener.receive(SHORT) == NOTHING and listener.is_quiet())
    assert receive(["c", "d"], block=True, timeout=SHORT) == NOTHING
    assert listener.receive(SHORT) == NOTHING


def test_a_receive_that_is_interrupted_leaves_its_sleep_to_no_other_channel(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sleep of one channel looks for the messages of that channel."""

    def interrupt(seconds: float) -> float:
        raise RuntimeError("a signal handler")

    with monkeypatch.context() as patch:
        patch.setattr(Unchanged, "dozing", lambda *_: interrupt)
        patch.setattr(ThreadWaiter, "look_every", SHORT)
        with pytest.raises(RuntimeError):
            listener.layer.receive(["d"], block=True, timeout=LIVENESS)
    assert listener.receive(SHORT) == NOTHING


def test_green_threads_are_not_stopped(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have replaced `select.poll` by a function that lets others run."""
    poll, polls = select.poll, []

    def replaced() -> Any:
        polls.append(1)
        return poll()

    monkeypatch.setattr(select, "poll", replaced)
    layer = asgi_ipc.IPCChannelLayer(prefix)
    for _ in range(2):
        assert layer.receive(["c"], block=True, timeout=SHORT) == NOTHING
    session: Any = layer._core.session
    waiter = session.attachment.local.waiter
    assert polls and not waiter._dozes
    assert quiet_waiter(session, session.sources["c"]) is None
    layer.close()
