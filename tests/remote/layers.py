"""Remote layers with bad habits, made of a good one."""

from __future__ import annotations

from typing import Any

from asgi_ipc.aio import IPCChannelLayer


class Doubling(IPCChannelLayer):
    """Delivers every message of a group twice, as one whose client repeats commands may."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await super().group_send(group, message)
        await super().group_send(group, message)


class Failing(IPCChannelLayer):
    """Fails at every tenth receive, of which it has taken nothing."""

    count = 0

    async def receive(self, channel: str) -> dict[str, Any]:
        Failing.count += 1
        if Failing.count % 10 == 0:
            raise OSError("the server has closed the connection")
        return await super().receive(channel)


class Unreachable(IPCChannelLayer):
    """Fails as long as it is told to, and counts how often it was asked."""

    fails = True
    asked = 0

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        Unreachable.asked += 1
        if Unreachable.fails:
            raise OSError("connection refused")
        await super().group_send(group, message)
