"""A pytest plugin that puts our asyncio layer where channels_redis' own tests look for theirs.

Loaded with ``-p`` by test_channels_redis_suite.py, in a process of its own. The layer's prefix is
taken from the environment variable STAND_IN_PREFIX.
"""

from __future__ import annotations

import logging
import os
import sys
import types
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from asgi_ipc.aio import IPCChannelLayer


class RedisChannelLayer(IPCChannelLayer):
    """Takes ``hosts`` as theirs does, and has no use for them."""

    def __init__(self, hosts: object = None, **options: Any) -> None:
        super().__init__(os.environ["STAND_IN_PREFIX"], **options)


def _stand_in() -> types.ModuleType:
    package = types.ModuleType("channels_redis")
    core = types.ModuleType("channels_redis.core")
    core.ChannelFull = ChannelFull
    core.RedisChannelLayer = RedisChannelLayer
    package.core = core
    sys.modules.update({"channels_redis": package, "channels_redis.core": core})
    return package


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Their layer is expected to fail at cancellation; ours is not."""
    for item in items:
        if item.name == "test_receive_cancel":
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "xfail"]


_stand_in()
# They check the words in which theirs logs a dropped message; ours has its own.
logging.getLogger("asgi_ipc").setLevel(logging.ERROR)
