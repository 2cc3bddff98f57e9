"""What the proofs of reliability share: processes that do the work of a test for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest

from .stepping import WORKERS


@pytest.fixture(scope="session")
def workers() -> Iterator[Executor]:
    """One process for each processor, started anew: small, and without threads."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_end_when_told)
    # Ctrl-C is for the process that tells them. They are born with this mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(WORKERS):
            executor.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield executor
    # If a test was interrupted, they are still at work.
    executor.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()
    executor.shutdown()


def _end_when_told() -> None:
    """Clear up after SIGTERM, as after an exception."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
