"""Killed at any instruction: whatever a process was doing, the others go on.

Every test runs one operation in a forked process, which is killed (SIGKILL: nothing is cleaned up)
at its first instruction inside the package, at its second and so on; in a short run at those that
`stepping.chosen` picks. After each death the lock is free, the next call puts right what was left,
every message but the victim's is delivered once and in order, the groups are as before or as after,
and the largest message fits.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from asgi_ipc import segment
from asgi_ipc.layout import MAX_PROCESSES, P_GENERATION, PROCESS_WORDS, S_DIRTY
from asgi_ipc.verify import verify

from .stepping import (
    LARGEST,
    SCENARIOS,
    THE_END,
    Asyncio,
    Blocking,
    Held,
    Moment,
    Scenario,
    Step,
    Stepper,
    answer,
    assert_as_before_the_call,
    assert_the_largest_fits,
    assert_whole,
    at_moment,
    bury_all,
    chosen,
    die,
    fill_from,
    forked,
    generations,
    moments,
    reaped,
    record,
    waiters_in_use,
)

OPTIONS = {"message_memory": 1 << 18, "group_memory": 1 << 16, "max_message_size": LARGEST}


class Deaths:
    """One scenario under one prefix, with a survivor that stays attached."""

    def __init__(self, scenario: Scenario, prefix: str, client: type[Blocking], lock: str) -> None:
        self.scenario = scenario
        self.client = client
        self.prefix = prefix
        self.options = {**OPTIONS, "lock": lock, **scenario.options}
        self.survivor = Blocking(prefix, **self.options)
        self.survivor.idle()

    def prepare(self) -> None:
        fill_from(self.survivor, self.scenario)

    def run(self, fatal: Moment | None) -> tuple[int, list[Step]]:
        """Let a victim do it, killed at `fatal`: how it ended. None: take down its steps."""

        def child(connection: Connection) -> None:
            gc.freeze()
            victim = self.client(self.prefix, **self.options)
            self.scenario.arm(victim)

            def dirty() -> bool:
                session = victim.core.session
                return session is not None and session.store.words[S_DIRTY] != 0

            if fatal is None:
                steps = record(lambda: self.scenario.operate(victim), dirty)
                connection.send([tuple(step) for step in steps])
            else:
                Stepper(at_moment(fatal, die)).run(lambda: self.scenario.operate(victim))

        pid, connection = forked(child)
        steps = [Step(*step) for step in answer(connection, pid)] if fatal is None else []
        status = reaped(pid)
        connection.close()
        return status, steps

    def look(self) -> Held:
        """What is left, after everything that must be true of it."""
        survivor = self.survivor
        assert_as_before_the_call(survivor)
        assert_whole(survivor)
        self.scenario.restore(survivor)
        assert_whole(survivor)
        bury_all(survivor)
        store = survivor.store
        base, index = store.layout.processes, survivor.session.attachment.index
        assert generations(store, base, PROCESS_WORDS, P_GENERATION, MAX_PROCESSES) == [index]
        found = self.scenario.held(survivor)
        assert_the_largest_fits(survivor)
        assert_whole(survivor)
        assert waiters_in_use(store) == [], "the doorbell of somebody dead is still rung"
        return found


@pytest.fixture
def quiet() -> Iterator[None]:
    """Less for each fork to copy."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def die_everywhere(deaths: Deaths, name: str) -> None:
    scenario = deaths.scenario
    deaths.prepare()
    before = scenario_held(deaths)
    deaths.prepare()
    status, steps = deaths.run(None)
    assert status == 0
    assert len(steps) >= scenario.least, "the instructions were not counted"
    after = deaths.look()
    assert (before != after) == scenario.changes, "the scenario does nothing"

    failures = []
    seen = []
    early = 0  # it went another way than when it was recorded
    numbers = chosen(steps, name)
    assert len(numbers) >= min(len(steps), 50)
    for moment in moments(steps, numbers):
        deaths.prepare()
        try:
            status, _ = deaths.run(moment)
            assert status in (0, -signal.SIGKILL)
            early += status == 0 and moment is not THE_END
            found = deaths.look()
            seen.append(found)
            if status == 0:
                assert found == after
            wrong = scenario.complain(found, before, after)
            assert not wrong, wrong
        except Exception as error:
            failures.append(f"{moment}: {type(error).__name__}: {error}")
            deaths.survivor.flush()
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures[:30])
    assert before in seen and after in seen
    assert early <= len(numbers) // 20, "it does not always take the same steps"


def scenario_held(deaths: Deaths) -> Held:
    """What there is when the operation does not happen at all."""
    deaths.scenario.restore(deaths.survivor)
    return deaths.scenario.held(deaths.survivor)


@pytest.mark.parametrize("name", SCENARIOS)
def test_death_at_any_instruction(prefix: str, quiet: None, name: str) -> None:
    die_everywhere(Deaths(SCENARIOS[name](), prefix, Blocking, "mutex"), name)


@pytest.mark.parametrize("name", ["send", "receive", "group_send"])
def test_death_with_a_file_lock(prefix: str, quiet: None, name: str) -> None:
    die_everywhere(Deaths(SCENARIOS[name](), prefix, Blocking, "file"), name)


@pytest.mark.parametrize("name", ["send", "receive", "receive in vain"])
def test_death_in_an_event_loop(prefix: str, quiet: None, name: str) -> None:
    die_everywhere(Deaths(SCENARIOS[name](), prefix, Asyncio, "mutex"), name)


def test_death_while_the_segment_is_made(prefix: str, quiet: None) -> None:
    """Whoever comes next makes it, or mends it, and nobody waits."""

    def run(fatal: Moment | None) -> tuple[int, list[Step]]:
        def child(connection: Connection) -> None:
            victim = Blocking(prefix, **OPTIONS)

            if fatal is None:
                steps = record(lambda: victim.send("work", {"id": 1}), lambda: False)
                connection.send([tuple(step) for step in steps])
            else:
                Stepper(at_moment(fatal, die)).run(lambda: victim.send("work", {"id": 1}))

        pid, connection = forked(child)
        steps = [Step(*step) for step in answer(connection, pid)] if fatal is None else []
        status = reaped(pid)
        connection.close()
        return status, steps

    status, steps = run(None)
    assert status == 0
    assert len(steps) > 1000
    segment.destroy(prefix)
    failures = []
    outcomes = set()
    for moment in moments(steps, chosen(steps, "creation", 300)):
        status, _ = run(moment)
        outcomes.add(status)
        try:
            began = time.monotonic()
            next_one = Blocking(prefix, **OPTIONS)
            found = next_one.drain("work")
            assert found in ([], [("work", 1)])
            assert found or status
            assert_whole(next_one)
            assert_the_largest_fits(next_one)
            assert time.monotonic() - began < 1.0
            store = next_one.store
            bury_all(next_one)
            base, index = store.layout.processes, next_one.session.attachment.index
            assert generations(store, base, PROCESS_WORDS, P_GENERATION) == [index]
            assert verify(store, time.monotonic()) == []
            next_one.close()
        except Exception as error:
            failures.append(f"{moment}: {type(error).__name__}: {error}")
        segment.destroy(prefix)
    assert not failures, f"{len(failures)} of {len(steps)}:\n" + "\n".join(failures[:30])
    assert outcomes == {0, -signal.SIGKILL}
