"""What is measured, one module for each subject: a workload is a function from a `Run` to tables.

What one process does in a workload is a *role*: a coroutine that is handed a layer (see
`layers.contracts`) and calls it as a program would. It is written once for both contracts.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from benchmarks.layers.contenders import Contender, contender
from benchmarks.measure import Effort, interleaved
from benchmarks.processes import ChildFailed

S = TypeVar("S")
Entry = TypeVar("Entry", bound="tuple[object, ...]")


@dataclass(frozen=True)
class Run:
    """What to measure, and how long; and what went wrong."""

    layers: Sequence[str]  # names of contenders
    effort: Effort
    failures: list[str] = field(default_factory=list)

    @cached_property
    def contenders(self) -> list[Contender]:
        """Those of the layers that can be measured here. The environments of peers are built."""
        found = []
        for one in map(contender, self.layers):
            if missing := one.missing():
                print(f"{one.name} is left out. {missing}", file=sys.stderr, flush=True)
            else:
                found.append(one)
        return found

    def attempt(self, name: str, measure: Callable[..., S], *args: object) -> list[S]:
        """What `measure` returns, as a list of one; an empty list if it failed.

        A peer that loses a message, and so never ends, must not take the whole run with it.
        """
        try:
            return [measure(*args)]
        except (ChildFailed, AssertionError, OSError, asyncio.TimeoutError) as error:
            self.failures.append(name)
            print(f"\n{name} failed: {error}", file=sys.stderr, flush=True)
            return []

    def samples(
        self, repetitions: int, plan: Sequence[Entry], measure: Callable[..., S]
    ) -> dict[Entry, list[S]]:
        """What `measure(*entry)` returns for each entry of the plan, in each repetition.

        An entry begins with a contender. A slow one is measured twice at most.
        """
        found: dict[Entry, list[S]] = {entry: [] for entry in plan}
        few = self.effort(1, 1, 2) * len(plan)
        for number, entry in enumerate(interleaved(repetitions, plan)):
            one = entry[0]
            assert isinstance(one, Contender)
            if number < few or not one.slow:
                found[entry] += self.attempt(one.name, measure, *entry)
        return found
