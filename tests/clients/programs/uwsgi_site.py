"""A WSGI application that asks a worker and waits for the answer, on a channel of its own.

The layer is used once while this is imported: before uWSGI forks, unless it is told to be lazy.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from asgi_ipc.aio import IPCChannelLayer

layer = IPCChannelLayer(os.environ["PREFIX"], lock=os.environ["LOCK"])


async def ask() -> str:
    name = await layer.new_channel()
    await layer.group_add("sites", name)
    await layer.send("questions", {"reply": name})
    message = await asyncio.wait_for(layer.receive(name), 30)
    assert message == {"to": name}, message
    return f"{os.getpid()} {layer.client_prefix}"


async def use() -> None:
    name = await layer.new_channel()
    await layer.send(name, {})
    await layer.receive(name)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Not `asyncio.run`, which replaces the handler that uWSGI has for the signal to end."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


run(use())


def application(
    environ: dict[str, object], start_response: Callable[..., object]
) -> Iterable[bytes]:
    answer = run(ask()).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
