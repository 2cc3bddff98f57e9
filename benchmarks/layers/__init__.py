"""Channel layers measured alike, whatever they are made of: `python -m benchmarks.layers`.

`contenders` lists the layers and the two contracts they follow; `byhand` are queues, sockets and
bare FIFOs in the shape of a layer; `stage` opens them in processes of their own. Each other module
holds one or more workloads: a function from a `Run` to tables.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.layers.contenders import Contender
from benchmarks.measure import Effort
from benchmarks.processes import ChildFailed


@dataclass(frozen=True)
class Run:
    """What to measure, on which event loop, and how long; and what went wrong."""

    contenders: list[Contender]
    loop: str
    effort: Effort
    failures: list[str] = field(default_factory=list)

    def attempt(self, one: Contender, measure: Callable[..., Any], *args: Any) -> list[Any]:
        """What `measure` returns, as a list of one; of none if it failed.

        A peer that loses a message, and so never ends, must not take the whole run with it.
        """
        try:
            return [measure(*args)]
        except (ChildFailed, AssertionError, OSError, asyncio.TimeoutError) as error:
            self.failures.append(one.name)
            print(f"\n{one.name} failed: {error}", file=sys.stderr, flush=True)
            return []
