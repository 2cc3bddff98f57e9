"""docs/howto/servers.rst: each of its commands runs workers that hear each other."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.aio import IPCChannelLayer
from tests.documentation import pages
from tests.waiting import LIVENESS

for module in ("channels", "daphne", "gunicorn", "hypercorn", "uvicorn", "uvicorn_worker"):
    pytest.importorskip(module, reason=f"lacking: {module}")
websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")

PAGE = pages.DOCS / "howto" / "servers.rst"
COMMANDS = [
    command for block in pages.blocks(PAGE) if not block.file for command, _ in block.commands()
]
WITH_WORKERS = [command for command in COMMANDS if "--workers" in command]
DAPHNE = [command for command in COMMANDS if command.startswith("daphne ")]
WORKER = "python manage.py runworker thumbnails"


def test_every_command_is_tested() -> None:
    assert [command.split()[0] for command in WITH_WORKERS] == ["uvicorn", "hypercorn", "gunicorn"]
    assert len(DAPHNE) == 2
    assert COMMANDS == [*WITH_WORKERS, *DAPHNE, WORKER]


@pytest.mark.parametrize("commands", [*([c] for c in WITH_WORKERS), DAPHNE], ids=lambda c: c[0][:8])
async def test_browsers_of_different_workers_hear_each_other(
    commands: list[str], tmp_path: Path, prefix: str
) -> None:
    with pages.reader(tmp_path, prefix) as reader:
        for block in pages.blocks(PAGE):
            if block.file:
                reader.write(block)
        for command in commands:
            await asyncio.to_thread(reader.start, command)
        ports = [reader.port(port) for port in ("8001", "8002")][: len(commands)]
        async with AsyncExitStack() as stack:
            sockets = await browsers_of_two_processes(stack, ports)
            await sockets[0].send(json.dumps({"text": "hello"}))
            assert [await said(socket) for socket in sockets] == ["hello"] * len(sockets)
            await asyncio.to_thread(reader.start, WORKER)
            layer = IPCChannelLayer(prefix=prefix)
            await layer.send("thumbnails", {"type": "make", "picture": "cat.png"})
            assert {await said(socket) for socket in sockets} == {"cat.png is ready"}
            await layer.close()


async def browsers_of_two_processes(stack: AsyncExitStack, ports: list[int]) -> list[Any]:
    """Connects until two processes have answered; a server gives work to whom it likes."""
    found: dict[int, Any] = {}
    deadline = asyncio.get_running_loop().time() + LIVENESS
    while len(found) < 2:
        for port in ports:
            address = f"ws://127.0.0.1:{port}/"
            socket = await stack.enter_async_context(websockets.connect(address, proxy=None))
            found.setdefault(json.loads(await socket.recv())["process"], socket)
        assert asyncio.get_running_loop().time() < deadline, "only one process answers"
    return list(found.values())


async def said(socket: Any) -> str:
    message = await asyncio.wait_for(socket.recv(), LIVENESS)
    return str(json.loads(message)["text"])
