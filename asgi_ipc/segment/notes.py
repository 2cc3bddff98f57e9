"""Warnings that are logged once no lock is held.

Whoever handles a log line may do anything: block, send by the same layer, fork. Under the lock of a
segment, the flock of those who attach or the guard of the process, that would hold up others or
come back into the same call. So what runs there makes a note, and who has let go of the locks tells
it. In the folders ``store/`` and ``segment/`` nothing else logs.
"""

from __future__ import annotations

import logging
from _thread import get_ident
from collections import deque

logger = logging.getLogger("asgi_ipc")

waiting: deque[tuple[str, tuple[object, ...]]] = deque()  # the text of each line, and what fills it
telling: set[int] = set()  # the threads that are in `tell`


def note(text: str, *args: str | int) -> None:
    """Have a warning logged by the next `tell`, of whichever thread. `args` fill `text`, as in a
    call of a logger, and must be no objects of users."""
    waiting.append((text, args))


def tell() -> None:
    """Log what was noted. Must not be called under any lock, nor by a finalizer, which may run
    under one.

    What a handler's own calls note meanwhile is for a later `tell`: a handler that attaches, and is
    warned of the same thing each time, would never end.
    """
    thread = get_ident()
    if thread in telling:
        return
    telling.add(thread)
    try:
        for _ in range(len(waiting)):
            try:
                text, args = waiting.popleft()
            except IndexError:
                return  # another thread was quicker
            logger.warning(text, *args)
    finally:
        telling.discard(thread)


def forget() -> None:
    """In a forked child: what the parent noted, it tells itself. A child of a handler is in it."""
    waiting.clear()
    telling.intersection_update((get_ident(),))
