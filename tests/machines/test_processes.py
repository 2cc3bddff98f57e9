"""Two machines of several processes each: a chat with counts, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .. import processes
from ..environments import child_environment
from ..forks import fork_in_c
from ..waiting import LIVENESS
from .helpers import CORE, PUBSUB, receive, redis
from .servers import Server

pytest.importorskip("channels_redis", reason="lacking: channels_redis")

SOCKETS, MESSAGES = 3, 20


def program(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"tests.machines.programs.{name}", *map(str, arguments)]


@pytest.mark.parametrize("backend", [CORE, PUBSUB], ids=["core", "pubsub"])
async def test_a_chat_across_two_machines(
    machine: Callable[..., Any], prefix: str, server: Server, tmp_path: Path, backend: str
) -> None:
    """Each of 12 sockets in 4 processes hears each of 240 messages, once."""
    remote = redis(server, backend=backend, capacity=10_000)
    machine(1, remote), machine(2, remote)  # their memory is removed at the end
    outsider = machine(3, remote)  # so that its messages come last on both machines
    with ExitStack() as stack:
        chatting = [
            stack.enter_context(
                processes.running(
                    program("chat", f"{prefix}-{where}", json.dumps(remote), SOCKETS, MESSAGES),
                    log=tmp_path / f"chat-{number}.log",
                    environment=child_environment(),
                )
            )
            for number, where in enumerate((1, 1, 2, 2))
        ]
        for process in chatting:
            await asyncio.to_thread(process.wait_for_output, "ready")
        await outsider.group_send("lobby", {"type": "go"})
        for process in chatting:
            await asyncio.to_thread(process.wait_for_output, "spoken")
        await outsider.group_send("lobby", {"type": "end"})
        outputs = [await asyncio.to_thread(process.wait) for process in chatting]
        said = {
            f"{process.pid}.{socket}.{number}"
            for process in chatting
            for socket in range(SOCKETS)
            for number in range(MESSAGES)
        }
    assert [output for output in outputs if "Traceback" in output] == []
    heard = [socket for output in outputs for socket in json.loads(output.splitlines()[-1])]
    assert len(heard) == 4 * SOCKETS
    assert [Counter(words) for words in heard] == [Counter(said)] * len(heard)


async def test_the_relay_is_killed_in_the_middle_of_traffic(
    machine: Callable[..., Any], prefix: str, server: Server, tmp_path: Path
) -> None:
    """Another process takes over. Only the message that the dead relay was delivering is lost."""
    remote = redis(server)
    here, there = machine(1, remote), machine(2, remote)
    with processes.running(
        program("waits", f"{prefix}-2", json.dumps(remote)),
        log=tmp_path / "relay.log",
        environment=child_environment(),
    ) as relay:
        await asyncio.to_thread(relay.wait_for_output, "relay")
        channel = await there.new_channel()
        got: list[int] = []

        async def read() -> None:
            while not got or got[-1] != 399:
                got.append((await receive(there, channel))["number"])

        reading = asyncio.ensure_future(read())
        for number in range(400):
            if number == 100:
                relay.kill()
            await here.send(channel, {"number": number})
        await reading
    assert got == sorted(set(got))
    assert len(got) >= 399


async def test_a_relay_that_ends_hands_over_at_once(
    machine: Callable[..., Any], server: Server
) -> None:
    remote = redis(server)
    here, first, second = machine(1, remote), machine(2, remote), machine(2, remote)
    await first.group_add("room", await first.new_channel())
    channel = await second.new_channel()
    await second.group_add("room", channel)
    assert first._gateway.relay.elected and not second._gateway.relay.elected
    await first.close()
    for number in range(20):
        await here.group_send("room", {"number": number})
    assert [(await receive(second, channel))["number"] for _ in range(20)] == list(range(20))


@pytest.mark.parametrize("fork", [os.fork, fork_in_c], ids=["python", "c"])
def test_a_forked_child_is_a_process_of_its_own(
    prefix: str, server: Server, fork: Callable[[], int]
) -> None:
    """It starts its own loop thread, and takes nothing from its parent."""
    from asgi_ipc import LocalAndRemoteChannelLayer, segment

    here = LocalAndRemoteChannelLayer(redis(server), {"prefix": prefix})
    there = LocalAndRemoteChannelLayer(redis(server), {"prefix": f"{prefix}-2"})
    try:
        reply = there.new_channel("reply?")
        here.send(reply, {"pid": os.getpid()})
        child = fork()
        if not child:
            _answer(here, reply)
        assert os.waitpid(child, 0)[1] == 0
        here.send(reply, {"pid": os.getpid()})
        pids = []
        for _ in range(30):
            _, message = there.receive([reply], block=True)
            pids += [message["pid"]] if message else []
            if len(pids) == 3:
                break
        assert pids == [os.getpid(), child, os.getpid()]
    finally:
        here.close()
        there.close()
        segment.destroy(f"{prefix}-2")


def _answer(layer: Any, reply: str) -> None:
    """Send the id of this process, and end it."""
    signal.alarm(int(LIVENESS))
    status = 1
    try:
        layer.send(reply, {"pid": os.getpid()})
        layer.close()
        status = 0
    finally:
        os._exit(status)


def test_a_program_that_ends_leaves_no_noise(prefix: str, server: Server, tmp_path: Path) -> None:
    """It does not call close(), and its loop thread is in the middle of a receive."""
    source = f"""
import asyncio
from asgi_ipc.aio import LocalAndRemoteChannelLayer

layer = LocalAndRemoteChannelLayer({redis(server)!r}, {{"prefix": {prefix!r}}})

async def main():
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_send("room", {{"text": "hello"}})
    print(await layer.receive(channel))

asyncio.run(main())
"""
    with processes.running(
        [sys.executable, "-X", "dev", "-c", source],
        log=tmp_path / "program.log",
        environment=child_environment(),
    ) as run:
        # In the mode for developers, asyncio names each step that takes long, as on a busy machine.
        slow = re.compile(r"^Executing <.* took .* seconds\n", re.MULTILINE)
        assert slow.sub("", run.wait()) == "{'text': 'hello'}\n"
