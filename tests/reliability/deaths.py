"""Victims that are killed: a forked process does one operation, and dies at one instruction of it.

Run by the workers of `test_death`, which are small processes: a fork copies what there is.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

from asgi_ipc import segment
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import S_MARK, WORD

from .clients import CLIENTS, Blocking, without_compiled, without_upkeep
from .looking import (
    assert_as_before_the_call,
    assert_nobody_else_is_entered,
    assert_the_largest_fits,
    assert_whole,
    bury_all,
)
from .scenarios import OPTIONS, SCENARIOS, Held
from .stepping import THE_END, Moment, Outcome, Step, answer, die, forked, reaped, record, stop_at


class Task(NamedTuple):
    """An operation by one kind of client, with one kind of lock."""

    scenario: str
    client: str = "blocking"
    lock: str = "mutex"
    compiled: bool = False  # whether the victim uses the compiled path where it can


class Plan(NamedTuple):
    """What an operation does when nothing happens to it."""

    steps: list[Step]
    before: Held
    after: Held


def seen_by_others(paths: Paths) -> object:
    """All that this process would leave to others if it died now: the bytes of the segment, the
    files beside it, and its locks on these, which the kernel takes back."""
    try:
        with open(f"/dev/shm{paths.segment}", "rb") as file:
            number = os.fstat(file.fileno()).st_ino
            mark = os.pread(file.fileno(), WORD, S_MARK * WORD)
            size = int.from_bytes(mark, sys.byteorder) * WORD
            memory = os.pread(file.fileno(), size or 1 << 20, 0)
    except FileNotFoundError:
        number, memory = 0, b""
    return memory, number, files_of(paths.directory), locks()


def files_of(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def locks() -> list[bytes]:
    """What the kernel knows of the locks that this process holds."""
    found = []
    for name in os.listdir("/proc/self/fdinfo"):
        with suppress(OSError):  # without a file object, which would take twice as long
            fd = os.open(f"/proc/self/fdinfo/{name}", os.O_RDONLY)
            told = os.read(fd, 65536)
            os.close(fd)
            if b"\nlock:" in told:
                found += [line for line in told.splitlines() if line.startswith(b"lock:")]
    return found


class Deaths:
    """One task under a prefix of its own, with a survivor that stays attached."""

    def __init__(self, task: Task) -> None:
        self.prefix = f"t{os.getpid()}-{secrets.token_hex(4)}"
        self.scenario = SCENARIOS[task.scenario]()
        self.client = CLIENTS[task.client]
        self.compiled = task.compiled
        self.options = {**OPTIONS, "lock": task.lock, **self.scenario.options}
        self.survivor = Blocking(self.prefix, **self.options)

    def __enter__(self) -> Deaths:
        without_upkeep()
        gc.collect()
        gc.freeze()  # the less there is for each fork to copy
        self.survivor.idle()
        return self

    def __exit__(self, *exc: object) -> None:
        self.survivor.close()
        segment.destroy(self.prefix)

    def plan(self) -> Plan:
        scenario, survivor = self.scenario, self.survivor
        scenario.fill(survivor)
        scenario.restore(survivor)
        before = scenario.held(survivor)
        scenario.fill(survivor)
        status, steps = self.run(None)
        assert status == 0
        return Plan(steps, before, self.look())

    def run(self, fatal: Moment | None) -> tuple[int, list[Step]]:
        """Let a victim do it, killed at `fatal`: how it ended. None: take down its steps."""

        def child(connection: Connection) -> None:
            if not self.compiled:
                without_compiled()
            victim = self.client(self.prefix, **self.options)
            self.scenario.arm(victim)

            if fatal is None:
                seen = partial(seen_by_others, Paths(self.prefix))
                steps = record(lambda: self.scenario.operate(victim), victim.dirty, seen)
                connection.send([tuple(step) for step in steps])
            else:
                stop_at(fatal, die, lambda: self.scenario.operate(victim))

        pid, connection = forked(child)
        steps = [Step(*step) for step in answer(connection, pid)] if fatal is None else []
        status = reaped(pid)
        connection.close()
        return status, steps

    def look(self) -> Held:
        """What is left, after everything that must be true of it."""
        scenario, survivor = self.scenario, self.survivor
        assert_as_before_the_call(survivor)
        assert_whole(survivor)
        scenario.restore(survivor)
        bury_all(survivor)
        found = scenario.held(survivor)
        assert_the_largest_fits(survivor)
        assert_whole(survivor)
        assert_nobody_else_is_entered(survivor)
        return found


def plan(task: Task) -> Plan:
    with Deaths(task) as deaths:
        return deaths.plan()


def die_at(moments: list[Moment], task: Task, before: Held, after: Held) -> Outcome:
    """Do it again and again, killed at one moment after the other."""
    failures, astray = [], 0
    was_before = was_after = False  # no list of all: the forks would copy it, and collect it
    with Deaths(task) as deaths:
        for moment in moments:
            try:
                deaths.scenario.fill(deaths.survivor)
                status, _ = deaths.run(moment)
                assert status in (0, -signal.SIGKILL), f"the victim ended with {status}"
                astray += status == 0 and moment != THE_END
                found = deaths.look()
                was_before |= found == before
                was_after |= found == after
                if status == 0:
                    assert found == after, f"{found}, and not {after}"
                wrong = deaths.scenario.complain(found, before, after)
                assert not wrong, wrong
            except Exception as error:
                failures.append(f"{moment}: {type(error).__name__}: {error}")
    return Outcome(failures, was_before, was_after, astray)
