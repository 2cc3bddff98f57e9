"""One receive, from state to state: begun, taken, parked, rung, left. The waiter is a fake of a few
lines, whose sleep does what a test says: `test_waits` has the real ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from asgi_ipc.aio.thread import finished
from asgi_ipc.aio.waiter import Way
from asgi_ipc.errors import CorruptStore, LimitReached, LockBusy, LockTimeout

from .cores import Cored

OURS, OTHERS = 5, 6  # waiter ids
NO_LIMIT = None


class Sleeper:
    """A waiter. Each of `dreams` is what happens in one sleep, and whether it ends by a ring."""

    waiter_id = OURS

    def __init__(self, *dreams: Callable[[], bool], spins: bool = False) -> None:
        self.dreams = list(dreams)
        self.spins = spins
        self.log: list[str] = []
        self.pauses: list[float] = []

    @property
    def way(self) -> Way:
        return Way(lambda session: self, self._pause)  # type: ignore[arg-type, return-value]

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def begin(self, session: Any, sources: Any, spin: float) -> bool:
        self.log.append("begin")
        return self.spins

    async def spin(self, sources: Any, seconds: float, deadline: Any) -> None:
        self.log.append("spin")

    def is_parked(self, source: Any) -> bool:
        return False

    def stays(self, source: Any) -> bool:
        return False

    async def wait(self, core: Any, session: Any, sources: Any, deadline: Any) -> bool:
        self.log.append("wait")
        return self.dreams.pop(0)()

    def end(self, session: Any, source: Any) -> None:
        self.log.append(f"end {source.channel}")


@pytest.fixture
def cored(prefix: str) -> Cored:
    return Cored(prefix)


def receive(
    cored: Cored, sleeper: Sleeper, *channels: str, deadline: float | None = NO_LIMIT
) -> Any:
    sources = cored.core.sources(cored.session, list(channels))
    return finished(cored.core.receive(cored.session, sources, deadline, sleeper.way))


def say(cored: Cored, channel: str, *texts: str) -> None:
    for text in texts:
        cored.layer.send(channel, {"text": text})


def arriving(cored: Cored, *channels: str) -> Callable[[], bool]:
    """A sleep in which a message comes to each of `channels`."""

    def dream() -> bool:
        for channel in channels:
            say(cored, channel, "hello")
        return True

    return dream


def raising(error: BaseException) -> Callable[[], bool]:
    def dream() -> bool:
        raise error

    return dream


HELLO = {"text": "hello"}


# -- to taken -------------------------------------------------------------------------------------


def test_what_is_there_is_taken_and_nobody_sleeps(cored: Cored) -> None:
    say(cored, "c", "hello")
    sleeper = Sleeper()
    assert receive(cored, sleeper, "c") == ("c", HELLO)
    assert sleeper.log == ["begin"] and cored.parked("c") == [0]


def test_a_spin_comes_before_the_first_section(cored: Cored) -> None:
    sleeper = Sleeper(spins=True)
    cored.core.sources(cored.session, ["c"])
    before = cored.sections

    async def spin(*_: Any) -> None:
        assert cored.sections == before
        say(cored, "c", "hello")

    sleeper.spin = spin  # type: ignore[method-assign]
    assert receive(cored, sleeper, "c") == ("c", HELLO)
    assert sleeper.log == ["begin"]


def test_the_section_that_finds_nothing_parks_and_a_ring_ends_that(cored: Cored) -> None:
    def dream() -> bool:
        assert cored.parked("c") == [1]
        return arriving(cored, "c")()

    sleeper = Sleeper(dream)
    assert receive(cored, sleeper, "c") == ("c", HELLO)
    assert cored.rings == [("c", OURS)]  # by the sender, once
    assert sleeper.log == ["begin", "wait", "end c"] and cored.parked("c") == [0]


def test_a_receive_that_another_was_quicker_than_parks_again(cored: Cored) -> None:
    def dream() -> bool:
        arriving(cored, "c")()
        assert cored.receive("c") == [HELLO] and cored.parked("c") == [0]
        return True

    def second() -> bool:
        assert cored.parked("c") == [1]
        return arriving(cored, "c")()

    sleeper = Sleeper(dream, second)
    assert receive(cored, sleeper, "c") == ("c", HELLO)
    assert cored.rings == [("c", OURS)] * 2


def test_of_several_channels_it_leaves_the_others_in_the_section_that_takes(cored: Cored) -> None:
    def dream() -> bool:
        assert cored.parked("a", "b", "p!") == [1, 1, 1]
        return arriving(cored, "b")()

    sleeper = Sleeper(dream)
    before = cored.sections
    assert receive(cored, sleeper, "a", "b", "p!") == ("b", HELLO)
    # One parked, two sent (the first looked the name up), and one took and left.
    assert cored.sections - before == 4
    assert cored.parked("a", "b", "p!") == [0, 0, 0]
    assert sorted(sleeper.log[2:]) == ["end a", "end b", "end p!"]


def test_a_ring_for_a_channel_that_it_does_not_take_from_goes_to_another(cored: Cored) -> None:
    def dream() -> bool:
        arriving(cored, "a", "b")()
        cored.store.park(cored.row("a"), OTHERS)
        cored.store.park(cored.row("b"), OTHERS)
        return True

    got, _ = receive(cored, Sleeper(dream), "a", "b")
    [left] = {"a", "b"} - {got}
    assert cored.rings == [("a", OURS), ("b", OURS), (left, OTHERS)]


def test_a_process_specific_channel_is_drained_for_all_of_its_receives(cored: Cored) -> None:
    sleeper = Sleeper(arriving(cored, "p!1", "p!2"))
    assert receive(cored, sleeper, "p!") == ("p!1", HELLO)
    before = cored.sections
    assert receive(cored, Sleeper(), "p!") == ("p!2", HELLO)
    assert cored.sections == before  # it was in the inbox


def test_an_error_wakes_those_for_whom_it_has_drained_another_channel(cored: Cored) -> None:
    woken = []
    inbox = cored.session.attachment.inbox("p!")
    inbox.join("other", SimpleNamespace(wake=lambda: woken.append(1), gone=lambda: False))
    say(cored, "p!other", "hello")
    cored.store.queues.max_rows = cored.store.queues.high
    sources = [cored.core.exact_source(cored.session, name)[0] for name in ("p!mine", "q!mine")]
    with pytest.raises(LimitReached):
        cored.core.take(cored.session, sources)
    assert woken == [1]


# -- to left --------------------------------------------------------------------------------------


def test_at_the_deadline_it_leaves_without_a_message(cored: Cored) -> None:
    sleeper = Sleeper(lambda: False)
    assert receive(cored, sleeper, "a", "b") is None
    assert cored.parked("a", "b") == [0, 0]
    assert sorted(sleeper.log) == ["begin", "end a", "end b", "wait"]


def test_the_section_of_the_last_try_also_leaves(cored: Cored) -> None:
    sleeper = Sleeper(lambda: False)
    before = cored.sections
    assert receive(cored, sleeper, "c") is None
    assert cored.sections - before == 2  # it parks in the first
    assert cored.parked("c") == [0] and sleeper.log == ["begin", "wait", "end c"]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), CorruptStore()])
def test_an_exception_in_its_sleep_gets_out_and_leaves_nothing(
    cored: Cored, error: BaseException
) -> None:
    sleeper = Sleeper(raising(error))
    with pytest.raises(type(error)):
        receive(cored, sleeper, "c")
    assert cored.parked("c") == [0] and sleeper.log[-1] == "end c"


def test_a_ring_under_way_to_a_receive_that_left_goes_to_another(cored: Cored) -> None:
    def dream() -> bool:
        arriving(cored, "c")()
        cored.store.park(cored.row("c"), OTHERS)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        receive(cored, Sleeper(dream), "c")
    assert cored.rings == [("c", OURS), ("c", OTHERS)]
    assert cored.receive("c") == [HELLO]  # it was not lost


def test_of_a_segment_that_is_gone_it_asks_nothing(cored: Cored) -> None:
    def dream() -> bool:
        cored.session.attachment.broken = CorruptStore()
        cored.fails = [AssertionError("it took the lock")]
        raise CorruptStore

    with pytest.raises(CorruptStore):
        receive(cored, Sleeper(dream), "c")


# -- a lock that stays busy -----------------------------------------------------------------------


def test_it_rides_out_a_busy_lock_with_one_line(
    cored: Cored, caplog: pytest.LogCaptureFixture
) -> None:
    say(cored, "c", "hello")
    cored.fails = [LockTimeout("process 77 holds the lock"), LockBusy(77), LockBusy(77)]
    sleeper = Sleeper()
    assert receive(cored, sleeper, "c") == ("c", HELLO)
    assert len(sleeper.pauses) == 3 and max(sleeper.pauses) < 0.01
    [line] = [record.getMessage() for record in caplog.records if record.name == "asgi_ipc"]
    assert cored.core.prefix in line and "process 77 holds the lock" in line


def test_a_busy_lock_for_less_than_lock_timeout_is_not_worth_a_line(
    cored: Cored, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    say(cored, "c", "hello")
    cored.fails = [LockBusy(77)] * 3
    assert receive(cored, Sleeper(), "c") == ("c", HELLO)
    assert caplog.records == []


def test_it_gives_up_on_a_busy_lock_at_its_deadline(cored: Cored) -> None:
    sleeper = Sleeper()
    cored.core.sources(cored.session, ["c"])
    cored.fails = [LockTimeout()] * 2
    assert receive(cored, sleeper, "c", deadline=time.monotonic() - 1) is None
    assert sleeper.pauses == [] and sleeper.log == ["begin"]


def test_a_lock_that_is_busy_when_it_leaves_keeps_nobody(cored: Cored) -> None:
    def dream() -> bool:
        cored.fails = [LockTimeout(), LockTimeout()]  # in the last try, and when it leaves
        return False

    assert receive(cored, Sleeper(dream), "c", deadline=0.0) is None
    assert cored.parked("c") == [1]  # whose ring the waiter passes on


def test_a_waiter_that_cannot_be_made_yet_is_asked_for_again(cored: Cored) -> None:
    say(cored, "c", "hello")
    sleeper, refusals = Sleeper(), [LockTimeout()] * 3

    def waiter(session: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return sleeper

    way = Way(waiter, sleeper._pause)
    sources = cored.core.sources(cored.session, ["c"])
    assert finished(cored.core.receive(cored.session, sources, None, way)) == ("c", HELLO)
    assert len(sleeper.pauses) == 2


# -- what a receive names -------------------------------------------------------------------------


def test_it_begins_with_another_channel_each_time(cored: Cored) -> None:
    names = ["a", "b", "c"]
    firsts = [cored.core.sources(cored.session, names)[0].channel for _ in range(6)]
    assert firsts[:3] == firsts[3:] and sorted(firsts[:3]) == names


def test_a_glance_at_an_empty_queue_takes_no_lock(cored: Cored) -> None:
    say(cored, "c", "hello")
    assert cored.receive("c") == [HELLO]  # which looks it up
    for names in (["c"], ["p!"]):
        sources = cored.core.sources(cored.session, names)
        before = cored.sections
        assert cored.core.glance(cored.session, sources) is None
        assert cored.sections == before
    say(cored, "c", "hello")
    sources = cored.core.sources(cored.session, ["c"])
    assert cored.core.glance(cored.session, sources) == ("c", HELLO)


def test_the_first_look_up_of_a_channel_gives_what_the_next_ones_give(cored: Cored) -> None:
    """By this list a thread knows that it waits for the same again."""
    for names in (["c"], ["p!"]):
        first = cored.core.sources(cored.session, names)
        assert cored.core.sources(cored.session, list(names)) is first
