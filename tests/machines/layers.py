"""Remote layers that misbehave, derived from one that does not."""

from __future__ import annotations

from typing import Any

from asgi_ipc.aio import IPCChannelLayer


class Doubling(IPCChannelLayer):
    """Delivers every group message twice, as a client that repeats commands may."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await super().group_send(group, message)
        await super().group_send(group, message)


class Failing(IPCChannelLayer):
    """Fails at every tenth receive, and takes nothing then."""

    count = 0

    async def receive(self, channel: str) -> dict[str, Any]:
        Failing.count += 1
        if Failing.count % 10 == 0:
            raise OSError("the server has closed the connection")
        return await super().receive(channel)


class Unreachable(IPCChannelLayer):
    """Fails while `fails` is true, and counts the calls."""

    fails = True
    asked = 0

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        Unreachable.asked += 1
        if Unreachable.fails:
            raise OSError("connection refused")
        await super().group_send(group, message)
