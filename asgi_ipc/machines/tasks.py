"""Several coroutines that run at once, and how they are ended. Must not know the remote layer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

_AGAIN = 0.2  # seconds until tasks that have not ended are cancelled again


async def run_until_one_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all at once until one of them ends or fails, then cancel the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(tasks)
    for task in done:
        task.result()


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended.

    More than once: some versions of asyncio, and some libraries, swallow a cancellation that comes
    together with a result or an error, and go on.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=_AGAIN)
        for task in ended:
            if not task.cancelled():
                task.exception()  # asyncio complains about one that nobody asks for
