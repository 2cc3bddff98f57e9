"""Interrupted at any instruction: what a signal handler that raises does, and what Ctrl-C does.

A victim in a process of its own does one operation again and again, and an exception is raised at
its first instruction inside the package, at its second and so on. It stays attached all the while.
After each exception the lock is free, nothing is half done, and both the victim and a bystander in
another process go on.

A short run takes a series of instructions that only read, compute and jump as one moment: an
exception anywhere in it leaves the same variables and the same memory, and meets the same handler.
`stepping.chosen` picks the moments.
"""

from __future__ import annotations

from concurrent.futures import Executor

import pytest

from ..compiling import needs_compiled
from ..proofs import Record
from .deaths import Task
from .interruptions import interrupt_at, plan, rehearse
from .scenarios import SCENARIOS
from .stepping import FULL_LENGTH, SPREAD, chosen, in_parts, moments

MANY = 60  # moments in the middle of a change, of which a short run takes every one
FEWEST = 15  # instructions of Python that are left of an operation with the compiled path

# Where the two layers go different ways; what happens inside a section is the same for both.
WAYS_OF_ASYNCIO = [
    "send",
    "receive",
    "receive by a process",
    "receive in vain",
    "group_add",
    "group_send",
    "attach",
    "detach",
    "flush",
]


def interrupt_everywhere(workers: Executor, task: Task, record_property: Record) -> None:
    scenario = SCENARIOS[task.scenario]
    steps, before, after = workers.submit(plan, task).result()
    least = FEWEST if task.compiled else scenario.least
    assert len(steps) >= least, "the instructions were not counted"
    assert (before != after) == scenario.changes, "the scenario does nothing"
    numbers = chosen(steps, MANY, outside=True)
    reached = {steps[number - 1].moment for number in numbers if number <= len(steps)}
    changing = {step.moment for step in steps if step.dirty}
    assert changing <= reached or len(changing) > MANY
    # Whatever was drawn, there is no longer stretch in which nothing was interrupted.
    gaps = [after - one for one, after in zip(numbers, numbers[1:]) if after <= len(steps)]
    assert max(gaps) <= -(-len(steps) // SPREAD)
    outcome = in_parts(workers, interrupt_at, [*moments(steps, numbers)], task, before, after)
    failures = outcome.failures
    print(f"{task}: interrupted at {len(numbers)} of {len(steps)} instructions")
    record_property("exceptions", len(numbers))
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures[:30])
    assert outcome.before and outcome.after
    # In a finalizer an exception is reported, and goes no further.
    assert scenario.in_finalizers or outcome.astray <= len(numbers) // 5 + 5


@pytest.mark.parametrize("name", SCENARIOS)
def test_exception_at_any_instruction(
    workers: Executor, name: str, record_property: Record
) -> None:
    interrupt_everywhere(workers, Task(name), record_property)


@pytest.mark.parametrize("name", SCENARIOS if FULL_LENGTH else WAYS_OF_ASYNCIO)
def test_exception_in_an_event_loop(workers: Executor, name: str, record_property: Record) -> None:
    interrupt_everywhere(workers, Task(name, client="asyncio"), record_property)


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_event_loop_can_do_each_scenario(workers: Executor, name: str) -> None:
    """Most are interrupted there only at full length: a fault would show only after hours."""
    workers.submit(rehearse, Task(name, client="asyncio")).result()


@pytest.mark.parametrize("name", ["send", "receive", "group_add", "flush"])
def test_exception_with_a_file_lock(workers: Executor, name: str, record_property: Record) -> None:
    interrupt_everywhere(workers, Task(name, lock="file"), record_property)


@needs_compiled
@pytest.mark.parametrize("client", ["blocking", "asyncio"])
@pytest.mark.parametrize("name", ["send", "receive", "receive in vain", "group_send"])
def test_exception_with_the_compiled_path(
    workers: Executor, name: str, client: str, record_property: Record
) -> None:
    interrupt_everywhere(workers, Task(name, client, compiled=True), record_property)
