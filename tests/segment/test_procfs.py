"""What /proc says of processes: answers, also for those that do not exist."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asgi_ipc.segment import procfs

from ..forks import Line, child, on_linux, rests
from ..waiting import until

NOBODY = 2**30  # no process id

pytestmark = on_linux


def test_of_a_process_that_does_not_exist_nothing_is_known() -> None:
    assert procfs.command_line(NOBODY) == ""
    assert not procfs.is_stopped(NOBODY)
    assert procfs.process_of(NOBODY) == procfs.process_of(0) == 0
    assert not procfs.thread_exists(NOBODY)


def test_a_thread_exists_and_belongs_to_its_process() -> None:
    found = []

    def ask() -> None:
        thread = threading.get_native_id()
        found.append((thread, procfs.thread_exists(thread), procfs.process_of(thread)))

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert found == [(found[0][0], True, os.getpid())]
    until(lambda: not procfs.thread_exists(found[0][0]))


def test_the_command_line_cannot_control_a_terminal() -> None:
    source = "import time; print('up', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", source, "a", "\033[31mred\a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            assert procfs.command_line(process.pid).endswith(" a ?[31mred?")
        finally:
            process.kill()


def test_a_process_that_is_stopped_is_known_for_it() -> None:
    with child(rests) as process:
        process.hear()
        assert not procfs.is_stopped(process.pid)
        process.kill(signal.SIGSTOP)
        until(lambda: procfs.is_stopped(process.pid))
        process.kill(signal.SIGCONT)
        until(lambda: not procfs.is_stopped(process.pid))


def test_the_holder_of_a_flock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()

    def hold(line: Line) -> None:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            rests(line)

    assert procfs.flock_holder(str(path)) == 0
    with child(hold) as process:
        process.hear()
        assert procfs.flock_holder(str(path)) == process.pid
    assert procfs.flock_holder(str(tmp_path / "none")) == 0


def test_a_file_of_another_device_with_the_same_inode_number_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.touch()
    lines = [
        f"{number}: FLOCK  ADVISORY  WRITE {pid} {device}:{path.stat().st_ino} 0 EOF\n"
        for number, pid, device in ((1, 11, "ff:ff"), (2, 22, procfs.in_locks(str(path))[:5]))
    ]
    for held, holder in ((lines, 22), (lines[:1], 0)):
        listed = io.StringIO("".join(held))
        monkeypatch.setattr(procfs, "open", lambda _, listed=listed: listed, raising=False)
        assert procfs.flock_holder(str(path)) == holder


def test_processes_of_one_namespace_give_it_the_same_number() -> None:
    with child(lambda line: line.say(procfs.namespace("pid"))) as process:
        assert process.hear() == procfs.namespace("pid") != 0
    assert procfs.namespace("none") == 0


def test_a_user_without_a_name_is_shown_by_number() -> None:
    assert procfs.user_name(0) == "root"
    assert procfs.user_name(2**31 - 5) == str(2**31 - 5)
