"""The plain operations, with the lock and the clock in the hands of the test: what a broadcast does
section by section, and what the statistics count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from asgi_ipc.aio import operations, sending
from asgi_ipc.aio.fanout import Broadcast
from asgi_ipc.errors import ChannelFull, LockBusy, LockTimeout, NotAChannel
from asgi_ipc.store.layout import Q_PENDING, Q_REFUSED, S_REFUSED, S_SEQ, S_SEQ_BASE
from asgi_ipc.store.queues import PROMISED

from .cores import Cored

HELLO = {"text": "hello"}
AT_ONCE = operations._TARGETS_AT_ONCE


@pytest.fixture
def cored(prefix: str) -> Cored:
    return Cored(prefix)


# -- sending --------------------------------------------------------------------------------------


def test_a_channel_is_looked_up_once(cored: Cored) -> None:
    cored.core.send("c", HELLO)
    before = cored.sections
    cored.core.send("c", HELLO)
    assert cored.sections == before + 1


def test_a_full_channel_and_full_memory_are_told_apart_and_both_counted(prefix: str) -> None:
    cored = Cored(prefix, capacity=2, channel_capacity={"wide": 1_000_000})
    with pytest.raises(ChannelFull, match="channel 'c' is at its capacity of 2 messages"):
        for _ in range(3):
            cored.core.send("c", HELLO)
    assert cored.store.words[cored.row("c") + Q_REFUSED] == 1
    with pytest.raises(ChannelFull, match="message_memory=262144 is used up"):
        while True:
            cored.core.send("wide", {"text": "x" * 900})
    assert cored.store.words[S_REFUSED] == 2


def test_the_error_says_which_limit_its_own_message_met(prefix: str) -> None:
    """Another thread may meet another limit before the error is made."""
    cored = Cored(prefix, capacity=1_000_000)
    session = cored.core.attach()
    section = session.section_of_three

    def interrupted(*args: Any) -> Any:
        result = section(*args)
        cored.store.lack = PROMISED
        return result

    session.section_of_three = interrupted
    with pytest.raises(ChannelFull, match="message_memory=262144 is used up"):
        while True:
            cored.core.send("c", {"text": "x" * 900})


def test_the_error_says_which_limit_was_met(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """That of the machine and that of the segment, each with its remedy; in the log, too."""
    cored = Cored(prefix, capacity=1_000_000)
    cored.core.group_add("lobby", "c")
    cored.store.shortage = lambda: "/dev/shm is full. Enlarge it"
    cored.store.log._reserve = cored.store.queues._reserve = lambda offset, length: False
    with pytest.raises(ChannelFull, match=f"'c' of prefix '{prefix}': /dev/shm is full. Enlarge"):
        while True:
            cored.core.send("c", {"text": "x" * 900})
    cored.core.group_send("lobby", {"text": "x" * 900})
    assert "/dev/shm is full" in caplog.text
    cored.receive("c")
    with pytest.raises(ChannelFull, match=f"of prefix '{prefix}': /dev/shm is full. Enlarge"):
        for number in range(1_000_000):
            cored.core.send(f"c{number}", HELLO)
    cored.store.queues.max_rows = cored.store.queues.high
    with pytest.raises(ChannelFull, match="as many as the segment has room for.* message_memory"):
        cored.core.send("another", HELLO)


def test_the_name_of_a_group_is_no_channel_until_there_is_one(cored: Cored) -> None:
    cored.core.group_add("lobby", "c")
    with pytest.raises(NotAChannel, match="'lobby' is the name of a group"):
        cored.core.send("lobby", HELLO)
    cored.store.bind(operations.Target(b"lobby"), 0.0)
    cored.core.send("lobby", HELLO)
    assert cored.receive("lobby") == [HELLO]


# -- to this process ------------------------------------------------------------------------------


class Asleep:
    """A receive that sleeps at an inbox, and counts how often it is woken."""

    def __init__(self, cored: Cored, channel: str) -> None:
        self.woken = 0
        queue, _, local = channel.partition("!")
        cored.receive(f"{queue}!")  # so that the process owns it
        cored.session.attachment.inbox(f"{queue}!").join(local, self)

    def wake(self) -> None:
        self.woken += 1

    def gone(self) -> bool:
        return False


def test_a_send_wakes_for_what_it_drained_before_the_lock_was_busy(prefix: str) -> None:
    cored = Cored(prefix, capacity=200)
    asleep = Asleep(cored, "p!other")
    for _ in range(200):
        cored.core.send("p!other", HELLO)
    # The name is no group's, the queue is full, this process owns it, and a part of it is drained.
    cored.fails = [*[None] * 4, LockTimeout()]
    with pytest.raises(LockTimeout):
        cored.core.send("p!mine", HELLO)
    assert 0 < cored.store.words[cored.row("p!") + Q_PENDING] < 200
    assert asleep.woken == 1


def test_a_broadcast_wakes_for_what_it_drained_before_the_lock_was_busy(prefix: str) -> None:
    """Two queues of the process, each with a capacity that has to be looked up."""
    cored = Cored(prefix, capacity=2, channel_capacity={"?!other": 2})
    asleep = [Asleep(cored, channel) for channel in ("p!other", "q!other")]
    for queue in ("p!", "q!"):
        cored.core.group_add("all", f"{queue}mine")
    cored.core.group_send("all", HELLO)
    assert len(cored.receive("p!", "q!")) == 2
    for channel in 2 * ["p!other", "q!other"]:
        cored.core.send(channel, HELLO)
    cored.fails = [None, None, LockTimeout()]
    with pytest.raises(LockTimeout):
        cored.core.group_send("all", HELLO)
    assert [each.woken for each in asleep] == [1, 1]


# -- broadcasts -----------------------------------------------------------------------------------


def members(cored: Cored, count: int) -> list[str]:
    """Channels that were added to the group "all"."""
    names = [f"member.{number}" for number in range(count)]
    for name in names:
        cored.core.group_add("all", name)
    return names


def pending(cored: Cored, names: list[str]) -> set[int]:
    return {cored.session.pending(cored.row(name)) for name in names}


def test_a_broadcast_to_many_queues_takes_the_lock_for_some_at_once(cored: Cored) -> None:
    names = members(cored, 2 * AT_ONCE + 1)
    before = cored.sections
    cored.core.group_send("all", HELLO)
    assert cored.sections - before == 3
    assert pending(cored, names) == {1}


@pytest.mark.parametrize("section", range(3))
def test_a_broadcast_that_a_busy_lock_interrupts_goes_on_where_it_was(
    cored: Cored, section: int
) -> None:
    names = members(cored, 2 * AT_ONCE + 1)
    progress = Broadcast()
    cored.fails = [*[None] * section, LockBusy(77)]
    with pytest.raises(LockBusy):
        cored.core.group_send("all", HELLO, progress)
    cored.core.group_add("all", "late")  # the broadcast keeps to those that it began with
    cored.core.group_send("all", HELLO, progress)
    assert pending(cored, names) == {1}
    assert cored.receive("late") == ([] if section else [HELLO])


def test_a_plan_is_kept_while_its_group_does_not_change(
    cored: Cored, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []
    plan = cored.session.planner.plan
    monkeypatch.setattr(
        cored.session.planner, "plan", lambda *args: [planned.append(args[0]), plan(*args)][1]
    )
    members(cored, 2)
    for _ in range(3):
        cored.core.group_send("all", HELLO)
    assert planned == [b"all"]
    cored.core.group_discard("all", "member.1")
    cored.core.group_send("all", HELLO)
    assert planned == [b"all"] * 2
    assert len(cored.receive("member.0")) == 4 and len(cored.receive("member.1")) == 3


def test_a_group_that_ended_leaves_nothing(cored: Cored) -> None:
    members(cored, 1)
    cored.core.group_send("all", HELLO)
    assert set(cored.session.fanouts) == {b"all"}
    cored.core.group_discard("all", "member.0")
    cored.core.group_send("all", HELLO)
    assert cored.session.fanouts == {}


def test_a_flush_forgets_the_plans(cored: Cored) -> None:
    members(cored, 1)
    cored.core.group_send("all", HELLO)
    cored.core.flush()
    assert cored.session.fanouts == {}
    assert cored.receive("member.0") == []


def test_the_waiters_of_a_broadcast_are_rung_after_its_section(cored: Cored) -> None:
    members(cored, 3)
    cored.core.group_send("all", HELLO)
    for number in range(2):
        cored.store.park(cored.row(f"member.{number}"), 5 + number)
    cored.core.group_send("all", HELLO)
    assert sorted(cored.rings) == [("member.0", 5), ("member.1", 6)]


# -- statistics -----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(cored: Cored, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the operations. It stands at the time when the segment was made."""
    clock = Clock()
    clock.now = cored.store.doubles[operations.S_SINCE]
    for module in (operations, sending):
        monkeypatch.setattr(module, "clock", clock)
    return clock


def figures(cored: Cored, channel: str = "") -> dict[str, Any]:
    return cored.core.channel_statistics(channel) if channel else cored.core.global_statistics()


@pytest.mark.parametrize("channel", ["", "c"])
def test_rates_are_since_the_beginning_and_then_since_the_last_look(
    cored: Cored, clock: Clock, channel: str
) -> None:
    rate = "messages_count_per_second"
    for _ in range(10):
        cored.core.send("c", HELLO)
    clock.now += 5
    assert figures(cored, channel)[rate] == pytest.approx(2)
    cored.core.send("c", HELLO)
    clock.now += 0.5  # too soon: counted from the same moment as before
    assert figures(cored, channel)[rate] == pytest.approx(2)
    clock.now += 0.5
    assert figures(cored, channel)[rate] == pytest.approx(1)
    clock.now += 10
    assert figures(cored, channel)[rate] == 0


def test_refusals_have_a_rate_too(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cored = Cored(prefix, capacity=1)
    began = cored.store.doubles[operations.S_SINCE]
    for module in (operations, sending):
        monkeypatch.setattr(module, "clock", SimpleNamespace(monotonic=lambda: began + 4))
    cored.core.send("c", HELLO)
    for _ in range(8):
        with pytest.raises(ChannelFull):
            cored.core.send("c", HELLO)
    found = figures(cored)
    assert found["channel_full_count"] == 8
    assert found["channel_full_count_per_second"] == pytest.approx(2)


def test_after_a_flush_counting_begins_again(cored: Cored, clock: Clock) -> None:
    for _ in range(10):
        cored.core.send("c", HELLO)
    clock.now += 5
    assert figures(cored)["messages_count"] == 10
    cored.core.flush()
    cored.store.doubles[operations.S_SINCE] = clock.now  # by this clock
    cored.core.send("c", HELLO)
    clock.now += 2
    found = figures(cored)
    assert found["messages_count"] == 1
    assert found["messages_count_per_second"] == pytest.approx(0.5)


def test_the_oldest_message_of_all_channels_gives_the_age(cored: Cored, clock: Clock) -> None:
    cored.core.send("old", HELLO)
    clock.now += 3
    cored.core.send("new", HELLO)
    clock.now += 1
    assert figures(cored)["messages_max_age"] == pytest.approx(4)
    assert figures(cored, "new")["messages_max_age"] == pytest.approx(1)
    assert figures(cored)["messages_pending"] == 2
    assert figures(cored, "none") == dict.fromkeys(figures(cored), 0)


def test_words_that_contradict_each_other_give_no_figure_below_zero(
    cored: Cored, clock: Clock
) -> None:
    cored.core.send("c", HELLO)
    cored.store.words[S_SEQ_BASE] = cored.store.words[S_SEQ] + 100
    clock.now -= 10  # the message is from the future
    assert all(value >= 0 for value in figures(cored).values())


def test_the_samples_of_channels_are_bounded(
    cored: Cored, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "CACHED", 3)
    for number in range(10):
        cored.core.send(f"c{number}", HELLO)
    clock.now += 2
    for number in range(10):
        figures(cored, f"c{number}")
    assert len(cored.core._samples) <= 3


def test_stats_count_rates_from_a_look_that_is_at_least_a_second_old(cored: Cored) -> None:
    for _ in range(10):
        cored.core.send("c", HELLO)
    assert cored.core.stats().pending == 10
    first = cored.core._totals
    cored.core.stats()
    assert cored.core._totals is first is not None
    cored.core._totals = first._replace(at=first.at - 1)
    cored.core.stats()
    assert cored.core._totals is not first
