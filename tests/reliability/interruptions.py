"""Victims that are interrupted: a process does one operation again and again, and an exception is
raised at one instruction of it. The process lives on, stays attached, and is asked to go on.

Run by the workers of `test_exceptions`: each is the bystander of a victim in another process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from asgi_ipc import segment
from asgi_ipc.store.layout import Q_WAITING
from asgi_ipc.store.queues import Target

from ..waiting import until
from .clients import CLIENTS, Blocking, without_compiled, without_upkeep
from .deaths import Plan, Task
from .looking import assert_as_before_the_call, assert_the_largest_fits, assert_whole
from .scenarios import OPTIONS, SCENARIOS, Held
from .stepping import THE_END, Moment, Outcome, Step, answer, forked, reaped, record, stop_at

RAISED = (KeyboardInterrupt, SystemExit)
LOCK_TIMEOUT = 1.0  # seconds
WOKEN = 0.5  # seconds: half of what passes until somebody looks who was not woken
WARM = 2  # times that an operation is done before it takes the same steps each time


class Victim:
    """Does what it is told over a pipe."""

    def __init__(self, connection: Connection, task: Task, prefix: str, options: Any) -> None:
        self.connection = connection
        self.scenario = SCENARIOS[task.scenario]()
        self.client = CLIENTS[task.client](prefix, **options)

    def serve(self) -> None:
        sys.unraisablehook = lambda unraisable: None  # in a finalizer, where it is only reported
        while True:
            told, argument = self.connection.recv()
            try:
                said = getattr(self, told)(argument)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            self.connection.send(said)

    def record(self, argument: None) -> list[Any]:
        self.scenario.arm(self.client)
        steps = record(lambda: self.scenario.operate(self.client), self.client.dirty)
        return [tuple(step) for step in steps]

    def operate(self, argument: None) -> None:
        self.scenario.arm(self.client)
        self.scenario.operate(self.client)

    def interrupt(self, told: tuple[Moment, int]) -> str:
        """Do it with an exception at one moment: how that ended."""
        moment, kind = told
        self.scenario.arm(self.client)

        def interrupt(frame: FrameType) -> None:
            raise RAISED[kind]

        try:
            stop_at(moment, interrupt, lambda: self.scenario.operate(self.client))
        except RAISED:
            said = "interrupted"
        else:
            said = "done"
        session = self.client.core.session
        if session is not None and session.attachment.lock.holder():
            said = "the lock is held"
        return said

    def go_on(self, argument: None) -> str:
        """The victim itself goes on."""
        self.client.send("own", {"id": 1})
        if self.client.receive("own") != ("own", {"id": 1}):
            return "a message of its own did not come"
        return "went on"

    def held(self, channel: str) -> Any:
        return self.client.drain(channel)

    def wait_for(self, channel: str) -> Any:
        """Sleeps until the bystander sends."""
        while True:
            found = self.client.wait(channel)
            if found[0] is not None:
                return found


class Interruptions:
    """One task under a prefix of its own: the bystander's side."""

    def __init__(self, task: Task) -> None:
        self.prefix = f"t{os.getpid()}-{secrets.token_hex(4)}"
        self.scenario = SCENARIOS[task.scenario]()
        options = {**OPTIONS, "lock": task.lock, "lock_timeout": LOCK_TIMEOUT}
        options.update(self.scenario.options)
        without_upkeep()
        gc.collect()
        gc.freeze()
        self.bystander = Blocking(self.prefix, **options)

        def child(connection: Connection) -> None:
            # An exception may well come between the making of a coroutine and its first step.
            warnings.simplefilter("ignore", RuntimeWarning)
            if not task.compiled:
                without_compiled()
            Victim(connection, task, self.prefix, options).serve()

        self._child = child
        self.pid, self.connection = forked(child)

    def __enter__(self) -> Interruptions:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        self.bystander.close()
        segment.destroy(self.prefix)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            reaped(self.pid)
        self.connection.close()

    def restart(self) -> None:
        """Go on with another victim."""
        self._end()
        self.pid, self.connection = forked(self._child)
        self.warm_up()

    def tell(self, told: str, argument: Any = None) -> Any:
        self.connection.send((told, argument))
        return answer(self.connection, self.pid)

    def warm_up(self) -> None:
        """Bring the victim to where it takes the recorded steps each time."""
        for _ in range(WARM):
            self.scenario.fill(self.bystander)
            said = self.tell("operate")
            assert said is None, said
            self.look()

    def record(self) -> tuple[list[Step], Held]:
        """What the victim does when nothing stops it: its steps, and what is there after them."""
        for _ in range(WARM):
            self.scenario.fill(self.bystander)
            steps = self.tell("record")
            assert not isinstance(steps, str), steps
            after = self.look()
        return [Step(*step) for step in steps], after

    def plan(self) -> Plan:
        self.scenario.fill(self.bystander)
        self.scenario.restore(self.bystander)
        before = self.held()
        steps, after = self.record()
        return Plan(steps, before, after)

    def held(self) -> Held:
        """What is there; the victim lives, so what belongs to it is for it to receive."""
        scenario, bystander = self.scenario, self.bystander
        messages = {
            channel: self.tell("held", channel)
            if channel == scenario.owns
            else bystander.drain(channel)
            for channel in scenario.channels
        }
        groups = {group: sorted(bystander.group_channels(group)) for group in scenario.groups}
        return Held(messages, groups)

    def look(self) -> Held:
        assert_as_before_the_call(self.bystander)
        assert_whole(self.bystander)
        self.scenario.restore(self.bystander)
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
        target = Target(b"bell")

        def parked() -> bool:
            row = bystander.session.section(bystander.store.find, target)
            return bool(row and bystander.store.words[row + Q_WAITING])

        until(parked, what="the victim to park", pause=0)
        began = time.monotonic()
        bystander.send("bell", {"id": 1})
        assert answer(self.connection, self.pid) == ("bell", {"id": 1})
        return time.monotonic() - began


def plan(task: Task) -> Plan:
    with Interruptions(task) as interruptions:
        return interruptions.plan()


def rehearse(task: Task) -> None:
    with Interruptions(task) as interruptions:
        interruptions.warm_up()


def interrupt_at(moments: list[Moment], task: Task, before: Held, after: Held) -> Outcome:
    """Do it again and again, interrupted at one moment after the other."""
    failures, astray = [], 0
    was_before = was_after = False
    with Interruptions(task) as interruptions:
        interruptions.warm_up()
        for index, moment in enumerate(moments):
            try:
                interruptions.scenario.fill(interruptions.bystander)
                said = interruptions.tell("interrupt", (moment, index % 2))
                assert said in ("interrupted", "done"), said
                astray += said == "done" and moment != THE_END
                found = interruptions.look()
                was_before |= found == before
                was_after |= found == after
                wrong = interruptions.scenario.complain(found, before, after)
                assert not wrong, wrong
                if index % 10 == 0:
                    # Woken, not found by the look once a second. A busy machine may be as slow as
                    # that; three times in a row is no accident.
                    slow = all(interruptions.wake() > WOKEN for _ in range(3))
                    assert not slow, "a sleeping victim is not woken"
            except Exception as error:
                failures.append(f"{moment}: {type(error).__name__}: {error}")
                interruptions.restart()
                if len(failures) >= 30:
                    break
    return Outcome(failures, was_before, was_after, astray)
