"""The processes that do the work of a test end with the process that told them, and clear up."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from ..forks import Line, child, on_linux, state_of
from ..waiting import until
from .conftest import start_workers
from .deaths import Deaths, Task


def is_interrupted(at_work: Path) -> None:
    with Deaths(Task("send")) as deaths:
        at_work.write_text(deaths.prefix)
        time.sleep(1e6)


def has_ended(pid: int) -> bool:
    try:
        return state_of(pid) == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@on_linux
def test_they_end_when_the_process_that_told_them_is_killed(tmp_path: Path) -> None:
    at_work = tmp_path / "at work"

    def tells_workers(line: Line) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Python tells of semaphores it leaves
        before = {*multiprocessing.active_children()}  # those of the process that forked this one
        executor = start_workers()
        executor.submit(is_interrupted, at_work)
        until(lambda: at_work.exists() and at_work.read_text(), what="a worker to be at work")
        line.say([worker.pid for worker in {*multiprocessing.active_children()} - before])
        line.hear()

    with child(tells_workers) as process:
        workers = process.hear()
        assert workers
        process.kill()
        until(lambda: all(map(has_ended, workers)), what="the workers to end")
    prefix = at_work.read_text()
    assert not [name for name in os.listdir("/dev/shm") if prefix in name]
