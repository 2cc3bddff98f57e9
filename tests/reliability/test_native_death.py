"""Killed at any machine instruction of the compiled path while it holds the lock.

Two proofs. Of random calls, every distinct state of the memory that a death could leave is
recovered: a process that is killed between two stores leaves what it has stored, whichever of its
instructions was the last. And a process is really killed at each of its instructions, with the
lock, as in `test_death`. The first has to fail for each of the mistakes that native/queue.c can be
compiled with.
"""

from __future__ import annotations

import ctypes
import signal
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.aio.thread import waiter_of_thread

from ..compiling import native_variant, needs_compiled, run_with
from ..proofs import Record
from ..waiting import LIVENESS
from . import machine, scenarios
from .clients import Blocking
from .deaths import Deaths, Task
from .stepping import FULL_LENGTH, Outcome, some

pytestmark = needs_compiled

HISTORIES = 600 if FULL_LENGTH else 40
KILLS = 30  # of a scenario, in a short run
MOST = 5000  # instructions; only the Python code takes more
FOUND_WITHIN = 20  # histories in which a mistake shows


class Known(scenarios.Scenario):
    """An operation on what the victim has looked up before, where the log has room for a message of
    that size: the usual case."""

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        survivor.send("other", scenarios.MINE)

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        waiter_of_thread(victim.session)
        for channel in ("work", "x.y!2"):
            victim.core._target(victim.session, channel)
        for channel in ("work", "empty"):
            [source] = victim.core.sources(victim.session, [channel])
            victim.session.section(victim.store.find, source.target)


class Send(Known, scenarios.Send):
    pass


class SendToProcess(Known, scenarios.SendToProcess):
    pass


class Receive(Known, scenarios.Receive):
    pass


class SendWhereSomebodyWaits(Known, scenarios.SendWhereSomebodyWaits):
    pass


class ReceiveWhereARingIsOwed(Known, scenarios.ReceiveWhereARingIsOwed):
    pass


class ReceiveInVainWhereARingIsOwed(Known, scenarios.ReceiveInVainWhereARingIsOwed):
    """The receiver parks."""


class ReceiveLast(Receive):
    """The only message: the log is empty afterwards."""

    def prepare(self, survivor: Blocking) -> None:
        scenarios.send_numbers(survivor, "work", range(1))
        survivor.group_add("room", "work")


OURS: dict[str, type[scenarios.Scenario]] = {
    "send": Send,
    "send to a process": SendToProcess,
    "receive": Receive,
    "receive the last": ReceiveLast,
    "send where somebody waits": SendWhereSomebodyWaits,
    "receive where a ring is owed": ReceiveWhereARingIsOwed,
    "receive in vain where a ring is owed": ReceiveInVainWhereARingIsOwed,
}


class MachineDeaths(Deaths):
    """Victims that are killed while they hold the lock."""

    def __init__(self, name: str) -> None:
        super().__init__(Task("send"))
        self.survivor.close()
        self.scenario = OURS[name]()
        self.survivor = Blocking(self.prefix, **self.options)

    def kill(self, at: int) -> tuple[int, int]:
        """Kill a victim at instruction number `at` with the lock, or let it go on with -1. Returns
        the number of instructions, and how it ended."""
        victims: list[Any] = []

        def prepare() -> None:
            victims.append(self.client(self.prefix, **self.options))
            self.scenario.arm(victims[0])

        pid = machine.traced(lambda: self.scenario.operate(victims[0]), prepare)
        lock: Any = self.survivor.session.attachment.lock
        count = machine.steps_of(pid, ctypes.addressof(lock._futex), at if at >= 0 else MOST)
        return count, machine.finish(pid, kill=at >= 0)


def plan(name: str) -> tuple[int, scenarios.Held, scenarios.Held]:
    """How many instructions it takes with the lock, and what was held before and after it."""
    with MachineDeaths(name) as deaths:
        scenario, survivor = deaths.scenario, deaths.survivor
        scenario.fill(survivor)
        scenario.restore(survivor)
        before = scenario.held(survivor)
        scenario.fill(survivor)
        count, status = deaths.kill(-1)
        assert status == 0
        return count, before, deaths.look()


def die_at(numbers: list[int], name: str, before: scenarios.Held, after: scenarios.Held) -> Outcome:
    failures = []
    was_before = was_after = False
    with MachineDeaths(name) as deaths:
        for number in numbers:
            try:
                deaths.scenario.fill(deaths.survivor)
                count, status = deaths.kill(number)
                assert (count, status) == (number, -signal.SIGKILL), (count, status)
                found = deaths.look()
                was_before |= found == before
                was_after |= found == after
                wrong = deaths.scenario.complain(found, before, after)
                assert not wrong, wrong
            except Exception as error:
                failures.append(f"instruction {number}: {type(error).__name__}: {error}")
    return Outcome(failures, was_before, was_after, 0)


@pytest.mark.parametrize("name", OURS)
def test_death_at_any_machine_instruction(
    workers: Executor, name: str, record_property: Record
) -> None:
    machine.tracer()
    count, before, after = workers.submit(plan, name).result()
    assert 50 < count < MOST, "the compiled path did not do it"
    assert (before != after) == OURS[name].changes
    numbers = [*range(1, count + 1)]
    if not FULL_LENGTH:
        numbers = sorted({1, count, *some(numbers, KILLS)})
    half = len(numbers) // 2
    parts = [
        workers.submit(die_at, part, name, before, after)
        for part in (numbers[:half], numbers[half:])
    ]
    outcomes = [part.result() for part in parts]
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    record_property("kills", len(numbers))
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures[:20])
    assert any(outcome.before for outcome in outcomes)
    assert any(outcome.after for outcome in outcomes)


def test_every_state_of_the_memory_can_be_recovered(
    workers: Executor, record_property: Record
) -> None:
    machine.tracer()
    parts = [range(first, HISTORIES, 2) for first in range(2)]
    done = [workers.submit(machine.histories, part) for part in parts]
    counts = done[0].result() + done[1].result()
    assert counts["not usual"] < HISTORIES / 4
    for what in ("send", "receive", "take", "park", "picked"):
        assert counts[what] > HISTORIES / 20, counts
    assert counts["states"] > 5 * HISTORIES
    record_property("states of the memory", counts["states"])
    record_property("machine instructions", counts["instructions"])


# The dirty store left out, and two stores in the wrong order.
MISTAKES = [
    *("NO_DIRTY_IN_PUT", "NO_DIRTY_IN_TAKE"),
    *("HEAD_BEFORE_BODY", "CLEAN_BEFORE_LINK", "DEAD_BEFORE_DIRTY"),
    *("WAITER_BEFORE_SUMMARY", "SUMMARY_BEFORE_WAITER"),
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, tmp_path: Path) -> None:
    machine.tracer()
    variant = native_variant(tmp_path, "-O2", f"-DMISTAKE={mistake}")
    program = "tests.reliability.machine", str(FOUND_WITHIN)
    done = run_with(variant, *program, timeout=10 * LIVENESS)
    assert done.returncode != 0 and "AssertionError: history" in done.stdout, done.stdout


def test_without_a_mistake_the_same_is_sound(tmp_path: Path) -> None:
    """So that the tests above say something."""
    machine.tracer()
    variant = native_variant(tmp_path, "-O2")
    done = run_with(variant, "tests.reliability.machine", "5", timeout=10 * LIVENESS)
    assert done.returncode == 0, done.stdout
