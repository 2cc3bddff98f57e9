"""Looks at the layer once a second, for all browsers of this process together.

A hundred browsers in one room need the same list. One look gets it for all of them, and each
browser gets it when it has changed. Without browsers there are no looks.
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
    """Passes the result of `look` to each `show`: when the show is added, and at each change."""

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
        """Remove a show; no error if it was not added."""
        self._seen.pop(show, None)
        self.nudge()

    def nudge(self) -> None:
        """Look now, without waiting for the second to end."""
        self._nudged.set()

    async def _run(self) -> None:
        while self._seen:
            self._nudged.clear()
            try:
                await self._pass_on(await self._look())
            except Exception:
                # The next look may succeed.
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
                    # The browser has gone, and `remove` will follow. The others continue.
                    logger.debug("the figures could not be sent to a browser", exc_info=True)
