"""A live layer of two processes, and the command that looks at it: both are real processes."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.view import View
from asgi_ipc.store.layout import WORD

from ..environments import child_environment
from ..forks import Line, child, stands_still
from ..processes import Process, running
from ..waiting import LIVENESS

# An asyncio process in a group. "backlog" holds three messages, "full" all five that it may.
CHAT = """
import asyncio, sys
from asgi_ipc.aio import IPCChannelLayer

async def main():
    layer = IPCChannelLayer(sys.argv[1], capacity=5)
    mine = await layer.new_channel()
    await layer.group_add("room", mine)
    for number in range(3):
        await layer.send("backlog", {"number": number})
    try:
        while True:
            await layer.send("full", {})
    except layer.ChannelFull:
        print("ready", mine, flush=True)
    while True:
        print("heard", await layer.receive(mine), flush=True)

asyncio.run(main())
"""

# A blocking process that answers each job.
WORKER = """
import sys
from asgi_ipc import IPCChannelLayer

layer = IPCChannelLayer(sys.argv[1], capacity=5)
print("ready", flush=True)
while True:
    channel, message = layer.receive(["jobs"], block=True)
    if message is not None:
        layer.send(message["reply_to"], {"done": message["job"]})
"""


class Live(NamedTuple):
    """A layer with a chat process and a worker."""

    prefix: str
    chat: Process
    worker: Process

    @property
    def mine(self) -> str:
        """The channel of the chat process, by its full name."""
        return self.chat.output().split()[1]


def stop(*processes: Process) -> None:
    """Stop processes, as a debugger would, and wait until they are stopped."""
    for process in processes:
        process.pause()


@contextlib.contextmanager
def stopped_holder(layer: IPCChannelLayer) -> Iterator[int]:
    """The pid of a forked process that was stopped while it held the lock of a layer."""

    def hold(_line: Line) -> None:
        layer._core.attach().section(lambda: os.kill(os.getpid(), signal.SIGSTOP))

    with child(hold) as process:
        stands_still(process.pid)
        yield process.pid


def resume(*processes: Process) -> None:
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)


def write_word(prefix: str, at: int, value: int) -> None:
    """Change one word of a segment behind the back of its users."""
    with open(f"/dev/shm/asgi_ipc.{prefix}", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
        memory[at * WORD : at * WORD + WORD] = value.to_bytes(8, "little")
        memory.close()


class Ran(NamedTuple):
    """The result of a command."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)


Run = Callable[..., Ran]


def asgi_ipc(*arguments: str, standard_input: str = "", **variables: str) -> Ran:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "asgi_ipc", *arguments],
        env=child_environment(**variables),
        input=standard_input,
        capture_output=True,
        text=True,
        timeout=LIVENESS,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def live_layer(prefix: str, folder: Path) -> Iterator[Live]:
    """Both processes, ready: the worker waits for a job."""

    def start(name: str, source: str) -> Any:
        return running(
            [sys.executable, "-c", source, prefix],
            log=folder / f"{name}.log",
            environment=child_environment(),
        )

    with start("chat", CHAT) as chat, start("worker", WORKER) as worker:
        chat.wait_for_output("ready")
        worker.wait_for_output("ready")

        def both_wait() -> bool:
            channels = Snapshot(View(prefix)).channels()
            return sum(1 for channel in channels if channel.waiting) == 2

        worker.wait_until(both_wait, "both to wait for messages")
        yield Live(prefix, chat, worker)


@pytest.fixture
def live(prefix: str, tmp_path: Path) -> Iterator[Live]:
    with live_layer(prefix, tmp_path) as layer:
        yield layer


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the programs that a test starts, even if the tests run in the background of a
    shell, which ignores SIGINT there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(prefix: str) -> Run:
    """The command, for the prefix of the test unless it names another."""

    def run(*arguments: str, **given: Any) -> Ran:
        return asgi_ipc(*arguments, **{"ASGI_IPC_PREFIX": prefix, **given})

    return run
