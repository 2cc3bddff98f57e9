"""Interrupted at any instruction: what a signal handler that raises does, and what Ctrl-C does.

A victim in a process of its own does one operation again and again, and an exception is raised at
its first instruction inside the package, at its second and so on (in a short run at those that
`stepping.chosen` picks). It stays attached all the while. After each exception the lock is free,
nothing is half done, and both the victim and a bystander in another process go on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import pytest

from asgi_ipc.layout import Q_WAITING, S_DIRTY
from asgi_ipc.queues import Target

from .stepping import (
    FULL_LENGTH,
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
    chosen,
    fill_from,
    forked,
    moments,
    reaped,
    record,
)

CLIENTS = {"blocking": Blocking, "asyncio": Asyncio}
OPTIONS = {
    "message_memory": 1 << 18,
    "group_memory": 1 << 16,
    "max_message_size": LARGEST,
    "lock_timeout": 1.0,
}
RAISED = (KeyboardInterrupt, SystemExit)
OPERATIONS = [
    "send",
    "send to a process",
    "send to a new channel",
    "send to a full queue",
    "send past an expired backlog",
    "send with relocation",
    "receive",
    "receive past expired ones",
    "receive from several",
    "receive by a process",
    "receive in vain",
    "group_add",
    "group_add again",
    "group_discard",
    "group_discard of the last",
    "group_send",
    "attach",
    "detach",
    "flush",
    "recovery",
]

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


class Interrupter:
    """The victim's side: does what it is told over a pipe."""

    def __init__(
        self, connection: Connection, client: type[Blocking], prefix: str, options: Any, name: str
    ) -> None:
        self.connection = connection
        self.scenario = SCENARIOS[name]()
        self.victim = client(prefix, **options)

    def serve(self) -> None:
        gc.freeze()
        while True:
            told, argument = self.connection.recv()
            if told == "end":
                return
            try:
                said = getattr(self, told)(argument)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            self.connection.send(said)

    def dirty(self) -> bool:
        session = self.victim.core.session
        return session is not None and session.store.words[S_DIRTY] != 0

    def record(self, argument: None) -> list[Any]:
        self.scenario.arm(self.victim)
        steps = record(lambda: self.scenario.operate(self.victim), self.dirty)
        return [tuple(step) for step in steps]

    def interrupt(self, told: tuple[Moment, int]) -> str:
        """Do it with an exception at one moment: how that ended."""
        moment, kind = told
        self.scenario.arm(self.victim)

        def interrupt(frame: FrameType) -> None:
            raise RAISED[kind]

        try:
            Stepper(at_moment(moment, interrupt)).run(lambda: self.scenario.operate(self.victim))
        except RAISED:
            said = "interrupted"
        else:
            said = "done"
        session = self.victim.core.session
        if session is not None and session.attachment.lock.holder():
            said = "the lock is held"
        return said

    def go_on(self, argument: None) -> str:
        """The victim itself goes on."""
        self.victim.send("own", {"id": 1})
        if self.victim.receive("own") != ("own", {"id": 1}):
            return "a message of its own did not come"
        return "went on"

    def held(self, channels: list[str]) -> Any:
        return [(channel, self.victim.drain(channel)) for channel in channels]

    def wait_for(self, channel: str) -> Any:
        """Sleeps until the bystander sends."""
        while True:
            found = self.victim.wait(channel)
            if found[0] is not None:
                return found


class Interruptions:
    """The bystander's side."""

    def __init__(self, prefix: str, client: type[Blocking], name: str, lock: str) -> None:
        self.scenario: Scenario = SCENARIOS[name]()
        options = {**OPTIONS, "lock": lock, **self.scenario.options}
        self.bystander = Blocking(prefix, **options)
        self.bystander.idle()
        # Long enough for the bystander to see that it is parked.
        waiting = {**options, "receive_timeout": 0.005}

        def child(connection: Connection) -> None:
            Interrupter(connection, client, prefix, waiting, name).serve()

        self._child = child
        self.pid, self.connection = forked(child)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            reaped(self.pid)
        self.connection.close()

    def restart(self) -> None:
        """Go on with another victim."""
        self.end()
        self.pid, self.connection = forked(self._child)

    def tell(self, told: str, argument: Any = None) -> Any:
        self.connection.send((told, argument))
        return answer(self.connection, self.pid)

    def held(self) -> Held:
        """What is there; the victim lives, so what belongs to it is for it to receive."""
        scenario = self.scenario
        own = getattr(scenario, "owns", None)
        messages = dict(self.tell("held", [own])) if own else {}
        groups = {group: sorted(self.bystander.group_channels(group)) for group in scenario.groups}
        for channel in scenario.channels:
            if channel != own:
                messages[channel] = self.bystander.drain(channel)
        return Held(messages, groups)

    def look(self) -> Held:
        assert_as_before_the_call(self.bystander)
        assert_whole(self.bystander)
        found = self.held()
        assert_the_largest_fits(self.bystander)
        said = self.tell("go_on")
        assert said == "went on", said
        assert_whole(self.bystander)
        return found

    def wake(self) -> float:
        """Seconds from a send to the answer of a victim that sleeps."""
        bystander = self.bystander
        self.connection.send(("wait_for", "bell"))
        deadline = time.monotonic() + 10
        target = Target(b"bell")
        while True:
            row = bystander.session.section(bystander.store.find, target)
            if row and bystander.store.words[row + Q_WAITING]:
                break
            assert time.monotonic() < deadline, "the victim never parked"
        began = time.monotonic()
        bystander.send("bell", {"id": 1})
        assert answer(self.connection, self.pid) == ("bell", {"id": 1})
        return time.monotonic() - began


@pytest.fixture
def quiet() -> Iterator[None]:
    """Less for each fork to copy."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def interrupt_everywhere(trial: Interruptions, name: str) -> None:
    scenario = trial.scenario
    fill_from(trial.bystander, scenario)
    before = trial.held()
    for _ in range(2):  # the first time it fills its caches
        fill_from(trial.bystander, scenario)
        steps = [Step(*step) for step in trial.tell("record")]
        after = trial.look()
    assert len(steps) >= scenario.least, "the instructions were not counted"
    assert (before != after) == scenario.changes, "the scenario does nothing"

    failures = []
    seen = []
    swallowed = 0
    numbers = chosen(steps, name, outside=True)
    assert len(numbers) >= min(len(steps), 50)
    for index, moment in enumerate(moments(steps, numbers)):
        try:
            fill_from(trial.bystander, scenario)
            said = trial.tell("interrupt", (moment, index % 2))
            assert said in ("interrupted", "done"), said
            swallowed += said == "done" and moment is not THE_END
            found = trial.look()
            seen.append(found)
            wrong = scenario.complain(found, before, after)
            assert not wrong, wrong
            if index % 10 == 0:
                # Woken, not found by the look once a second; twice would be no accident.
                slow = [trial.wake() > 0.5 for _ in range(2)]
                assert not all(slow), "a sleeping victim is not woken"
        except Exception as error:
            failures.append(f"{moment}: {type(error).__name__}: {error}")
            trial.restart()
            if len(failures) >= 30:
                break
    assert not failures, f"{len(failures)} of {len(numbers)}:\n" + "\n".join(failures[:40])
    assert before in seen and after in seen
    assert scenario.in_finalizers or swallowed <= len(numbers) // 5 + 5


@pytest.fixture
def trial(request: pytest.FixtureRequest, prefix: str, quiet: None) -> Iterator[Interruptions]:
    client, name, lock = request.param
    made = Interruptions(prefix, CLIENTS[client], name, lock)
    yield made
    made.end()


TRIALS = [
    *(("blocking", name, "mutex") for name in OPERATIONS),
    *(("asyncio", name, "mutex") for name in (OPERATIONS if FULL_LENGTH else WAYS_OF_ASYNCIO)),
    *(("blocking", name, "file") for name in ("send", "receive", "group_add", "flush")),
]


@pytest.mark.parametrize("trial", TRIALS, ids="-".join, indirect=True)
def test_exception_at_any_instruction(trial: Interruptions, request: Any) -> None:
    interrupt_everywhere(trial, request.node.callspec.params["trial"][1])
