"""Killed at any instruction: whatever a process was doing, the others go on.

Every test runs one operation in a forked process, which is killed (SIGKILL: nothing is cleaned up)
at its first instruction inside the package, at its second and so on. After each death the lock is
free, the next call puts right what was left, every message but the victim's is delivered once and
in order, the groups are as before or as after, and the largest message fits.

A short run kills it once for each state that it leaves to others: the bytes of the segment, the
files beside it, and the locks that the kernel takes back. A process that is killed leaves nothing
else (nobody waits here whose doorbell it might ring), so that all instructions that leave the same
state are the same death; which of them it is differs from run to run. `stepping.chosen` picks them,
and a few more at random.
"""

from __future__ import annotations

from concurrent.futures import Executor

import pytest

from ..compiling import needs_compiled
from ..proofs import Record
from .deaths import Task, die_at, plan
from .scenarios import SCENARIOS
from .stepping import chosen, in_parts, moments

MANY = 400  # states of an operation, of which a short run takes every one
FEWEST = 15  # instructions of Python that are left of one with the compiled path


def die_everywhere(workers: Executor, task: Task, record_property: Record) -> None:
    scenario = SCENARIOS[task.scenario]
    steps, before, after = workers.submit(plan, task).result()
    least = FEWEST if task.compiled else scenario.least
    assert len(steps) >= least, "the instructions were not counted"
    assert (before != after) == scenario.changes, "the scenario does nothing"
    numbers = chosen(steps, MANY)
    states = steps[-1].moment + 1
    assert states >= (2 if task.compiled else 5), "what it does was not seen"
    assert len(numbers) >= min(states, MANY / 10)
    outcome = in_parts(workers, die_at, [*moments(steps, numbers)], task, before, after)
    failures = outcome.failures
    print(f"{task}: killed at {len(numbers)} of {len(steps)} instructions, in {states} states")
    record_property("kills", len(numbers))
    record_property("distinct states", states)
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures[:30])
    assert outcome.before and outcome.after
    assert outcome.astray <= len(numbers) // 20, "it does not always take the same steps"


@pytest.mark.parametrize("name", SCENARIOS)
def test_death_at_any_instruction(workers: Executor, name: str, record_property: Record) -> None:
    die_everywhere(workers, Task(name), record_property)


@pytest.mark.parametrize("name", ["send", "receive", "group_send"])
def test_death_with_a_file_lock(workers: Executor, name: str, record_property: Record) -> None:
    die_everywhere(workers, Task(name, lock="file"), record_property)


@pytest.mark.parametrize("name", ["send", "receive", "receive in vain"])
def test_death_in_an_event_loop(workers: Executor, name: str, record_property: Record) -> None:
    die_everywhere(workers, Task(name, client="asyncio"), record_property)


@needs_compiled
@pytest.mark.parametrize("name", ["send", "send where somebody waited", "receive in vain", "bury"])
def test_death_with_the_compiled_path(
    workers: Executor, name: str, record_property: Record
) -> None:
    """What Python does before and after it. `test_native_death` kills inside it."""
    die_everywhere(workers, Task(name, compiled=True), record_property)
