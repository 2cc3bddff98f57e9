"""What the proofs of reliability share: processes that do the work of a test for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest

from ..forks import tell_when_the_parent_ends
from .stepping import WORKERS

CLEARING = 5  # seconds after which a worker that was told to end is killed


@pytest.fixture(scope="session")
def workers() -> Iterator[Executor]:
    """One process for each processor, started anew: small, and without threads."""
    executor = start_workers()
    yield executor
    # If a test was interrupted, they are still at work.
    executor.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()
    executor.shutdown()


def start_workers() -> Executor:
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_end_when_told)
    # Ctrl-C is for the process that tells them. They are born with this mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(WORKERS):
            executor.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return executor


def _end_when_told() -> None:
    """Clear up after SIGTERM, as after an exception, and end. The kernel sends it too, if the
    process that gives out the work is killed."""
    signal.signal(signal.SIGTERM, _end)
    if sys.platform == "linux":
        tell_when_the_parent_ends(signal.SIGTERM)
        parent = multiprocessing.parent_process()
        if parent is None or os.getppid() != parent.pid:  # it had ended before
            sys.exit()


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # the kernel may send it twice
    # The executor takes the exception for the result of the work, and waits for more.
    signal.alarm(CLEARING)
    sys.exit()
