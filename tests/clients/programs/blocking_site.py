"""A WSGI application that asks a worker by the blocking layer, and waits for the answer.

The layer is used once while this is imported: before a server forks that loads it first.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable

from asgi_ipc import IPCChannelLayer

layer = IPCChannelLayer(os.environ["PREFIX"])


def ask() -> str:
    own = f"answer.{secrets.token_hex(8)}!"
    layer.group_add("sites", f"{own}here")
    layer.send("questions", {"reply": f"{own}here"})
    channel, message = layer.receive([own], block=True, timeout=30)
    assert (channel, message) == (f"{own}here", {"to": channel}), (channel, message)
    return f"{os.getpid()} {own}"


layer.send("imported", {})
assert layer.receive(["imported"]) == ("imported", {})


def application(
    environ: dict[str, object], start_response: Callable[..., object]
) -> Iterable[bytes]:
    answer = ask().encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
