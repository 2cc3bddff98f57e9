"""docs/tutorial.rst is followed from its first line to its last, and in the end it is a chat."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients import browsers
from tests.documentation import pages
from tests.processes import status
from tests.waiting import LIVENESS

pytest.importorskip("channels", reason="lacking: Channels 4")
pytest.importorskip("daphne", reason="lacking: daphne 4")
websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")

PAGE = pages.DOCS / "tutorial.rst"
SERVERS = [f"daphne -p {port} mysite.asgi:application" for port in ("8001", "8002")]
SAY = 'python manage.py say lobby "The kettle is on."'
RING = "python bell.py"
DESTROY = "python -c \"from asgi_ipc import segment; segment.destroy('mysite')\""


def test_every_step_does_what_the_page_says(tmp_path: Path, prefix: str) -> None:
    """The pages' own script is not run here; see below."""
    heard: list[list[str]] = []

    with pages.reader(tmp_path, prefix) as reader:

        def hear(command: str) -> None:
            heard.append(asyncio.run(heard_of(reader, command)))

        # The shared memory is removed only when the servers are stopped.
        instead = {SAY: lambda: hear(SAY), RING: lambda: hear(RING), DESTROY: lambda: None}
        reader.follow(PAGE, servers=SERVERS, instead=instead)
        assert heard == [
            ["hello", "hello", "The kettle is on.", "The kettle is on."],
            ["hello", "hello", "Somebody is at the door.", "Somebody is at the door."],
        ]
        assert status(reader.port("8002"), "/room/lobby/") == 200
        for server in SERVERS:
            reader.servers[server].stop()
        reader.run(DESTROY)
    assert not list(Path("/dev/shm").glob(f"asgi_ipc.{prefix}*"))


async def heard_of(reader: pages.Reader, command: str) -> list[str]:
    """What a browser on each server hears when the first says hello and a command is run."""

    def connect(port: str) -> Any:
        address = f"127.0.0.1:{reader.port(port)}"
        return websockets.connect(
            f"ws://{address}/room/lobby/", origin=f"http://{address}", proxy=None
        )

    async def next_of(socket: Any) -> str:
        message = await asyncio.wait_for(socket.recv(), LIVENESS)
        return str(json.loads(message)["text"])

    async with connect("8001") as first, connect("8002") as second:
        await first.send(json.dumps({"text": "hello"}))
        heard = [await next_of(first), await next_of(second)]
        await asyncio.to_thread(reader.run, command)
        return [*heard, await next_of(first), await next_of(second)]


async def test_the_page_of_the_room_in_two_browsers(tmp_path: Path, prefix: str) -> None:
    async with browsers.running() as browse:
        with pages.reader(tmp_path, prefix) as reader:
            reader.run("django-admin startproject mysite .")
            reader.run("python manage.py startapp chat")
            for block in pages.blocks(PAGE):
                if block.file:
                    reader.write(block)
            for server in SERVERS:
                reader.start(server)
            ada, grace = [
                await browse(f"http://127.0.0.1:{reader.port(port)}/room/lobby/")
                for port in ("8001", "8002")
            ]
            # What is said before the other has joined the group is not for the other.
            for page in (ada, grace):
                await page.wait_for("socket.readyState === WebSocket.OPEN")
            await ada.fill("input", "<i>hello</i>")
            await ada.click("button", "Say")
            for page in (ada, grace):
                await page.shows("li", "<i>hello</i>")
