"""Looks at something of the layer once a second, for all browsers of this process together.

A hundred browsers in one room want to see the same list: it is asked for once, and sent on to each
when it has changed. Nobody looks while no browser is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger("chat")

Look = Callable[[], Awaitable[Any]]
Show = Callable[[Any], Awaitable[None]]


class Watch:
    """What `look` returns, given to each `show` when it has been added and when it has changed."""

    def __init__(self, look: Look, every: float = 1.0) -> None:
        self._look = look
        self._every = every  # seconds
        self._seen: dict[Show, Any] = {}
        self._nudged = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, show: Show) -> None:
        self._seen[show] = None
        self.nudge()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def remove(self, show: Show) -> None:
        """Without effect where it has not been added."""
        self._seen.pop(show, None)
        self.nudge()

    def nudge(self) -> None:
        """Look now rather than when the second is over."""
        self._nudged.set()

    async def _run(self) -> None:
        while self._seen:
            self._nudged.clear()
            try:
                await self._pass_on(await self._look())
            except Exception:
                # The next look may be luckier: say so, and go on.
                logger.exception("could not look")
            try:
                await asyncio.wait_for(self._nudged.wait(), self._every)
            except asyncio.TimeoutError:
                pass
        self._task = None

    async def _pass_on(self, found: Any) -> None:
        for show, seen in list(self._seen.items()):
            if found != seen and show in self._seen:
                self._seen[show] = found
                try:
                    await show(found)
                except Exception:
                    # Its browser went, and `remove` is about to come. The others still look.
                    logger.debug("a browser could not be shown what was seen", exc_info=True)
