"""Which locks of the package a thread holds when it logs something: it must hold none, because a
handler may do anything. `conftest` watches every test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Functions that hold a lock while they run: by file and name, the lock.
HOLDERS = {
    ("segment/section.py", "section"): "the lock of the segment",
    ("attachment/process.py", "run"): "the guard",
    ("attachment/process.py", "release_gone"): "the guard",
    ("segment/opening.py", "attach"): "attach.lock",
    ("segment/opening.py", "remove"): "attach.lock",
    ("segment/opening.py", "remove_unless"): "attach.lock",
    ("attachment/resources.py", "renew_lock"): "attach.lock",
    ("inspection/locked.py", "_copy_under_lock"): "attach.lock",
}
_PACKAGE = "/asgi_ipc/"


def held(frame: FrameType | None) -> set[str]:
    """The locks that are held by a thread whose stack ends with `frame`."""
    found = set()
    while frame is not None:
        file = frame.f_code.co_filename.rpartition(_PACKAGE)[2]
        found.add(HOLDERS.get((file, frame.f_code.co_name), ""))
        frame = frame.f_back
    return found - {""}


class Watch(logging.Handler):
    """Notes the lines that are logged under a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        locks = held(sys._getframe())
        if locks:
            self.wrong.append(f"{record.getMessage()!r}, under {sorted(locks)}")


@contextmanager
def watched() -> Iterator[None]:
    """Fails if the block logs anything under a lock."""
    from asgi_ipc.segment import notes

    notes.waiting.clear()  # what an earlier test, of a lower floor, left untold
    watch, logger = Watch(), logging.getLogger("asgi_ipc")
    logger.addHandler(watch)
    try:
        yield
    finally:
        logger.removeHandler(watch)
    assert watch.wrong == []
