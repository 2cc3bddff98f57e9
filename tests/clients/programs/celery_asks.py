"""Celery tasks that ask by the blocking layer, each on a channel of its own, and wait.

The layer is used once while this is imported: before the prefork pool forks.
"""

from __future__ import annotations

import os
import secrets

from celery import Celery

from asgi_ipc import IPCChannelLayer

app = Celery("tasks")
app.config_from_envvar("CELERY_CONFIG_MODULE")
layer = IPCChannelLayer(os.environ["PREFIX"])
layer.send("imported", {})
assert layer.receive(["imported"]) == ("imported", {})


@app.task
def ask(number: int) -> None:
    own = f"answer.{secrets.token_hex(8)}!"
    layer.send("questions", {"reply": f"{own}here"})
    channel, message = layer.receive([own], block=True, timeout=30)
    assert (channel, message) == (f"{own}here", {"to": channel}), (channel, message)
    layer.send("answers", {"number": number, "from": own})
