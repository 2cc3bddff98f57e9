"""Warnings that are logged once no lock is held.

A log handler may do anything: block, send by the same layer, fork. Under the lock of a segment, the
flock of processes that attach or the guard of the process, that would block others or re-enter the
same call. So code that runs there makes a note, and the note is logged once the locks are released.
In the folders ``store/`` and ``segment/`` nothing else logs.
"""

from __future__ import annotations

import logging
from _thread import get_ident
from collections import deque

logger = logging.getLogger("asgi_ipc")

waiting: deque[tuple[str, tuple[object, ...]]] = deque()  # the text of each line, and what fills it
telling: set[int] = set()  # the threads that are in `tell`


def note(text: str, *args: str | int) -> None:
    """Have a warning logged by the next `tell` of any thread. `args` fill `text`, as in a call of a
    logger, and must not be objects of users."""
    waiting.append((text, args))


def tell() -> None:
    """Log what was noted. Must not be called under any lock, nor by a finalizer, which may run
    under one.

    Notes that a handler's own calls make meanwhile are left for a later `tell`. Otherwise a handler
    that attaches, and gets the same warning each time, would never end.
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
    """In a forked child: the parent logs its own notes. A child of a handler is still in `tell`."""
    waiting.clear()
    telling.intersection_update((get_ident(),))
