"""Tests that are killed: what they started ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from ..forks import Line, child, state_of
from ..reliability.conftest import start_workers
from ..reliability.stepping import WORKERS
from ..waiting import until


def tells_workers(line: Line) -> None:
    """One of the workers is at work, and the others wait for some, when this process is killed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Python tells of semaphores that are left
    before = {*multiprocessing.active_children()}  # those of the process that forked this one
    executor = start_workers()
    executor.submit(os.getpid).result()
    executor.submit(time.sleep, 1e6)
    line.say([worker.pid for worker in {*multiprocessing.active_children()} - before])
    signal.pause()


def has_ended(pid: int) -> bool:
    try:
        return state_of(pid) == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="lacking: Linux")
def test_workers_end_when_the_process_that_tells_them_is_killed() -> None:
    with child(tells_workers) as process:
        workers = process.hear()
        assert len(workers) == WORKERS
        process.kill()
        until(lambda: all(map(has_ended, workers)), what="the workers to end")
