"""Runs the examples of docs/howto/several-machines.rst, on a server of the test."""

from __future__ import annotations

import asyncio
import textwrap
from typing import Any

import pytest

from tests import environments, processes
from tests.documentation import pages

from ..machines.servers import Server
from ..waiting import LIVENESS

pytest.importorskip("channels_redis", reason="lacking: channels_redis")

PAGE = pages.DOCS / "howto" / "several-machines.rst"
EXAMPLES = {block.file: block.text for block in pages.blocks(PAGE)}


def example(name: str, prefix: str, server: Server) -> str:
    code = EXAMPLES[name].replace("mysite", prefix)
    for host in ('("redis.internal", 6379)', "redis.internal:6379"):
        code = code.replace(host, host.replace("6379", str(server.port)))
    return code.replace("redis.internal", "127.0.0.1")


def test_every_example_is_run() -> None:
    assert set(EXAMPLES) == {
        "several_machines_settings.py",
        "several_machines_blocking.py",
        "several_machines_channels1.py",
    }


def test_a_blocking_program_talks_to_the_site(prefix: str, server: Server) -> None:
    from channels.layers import ChannelLayerManager

    settings: dict[str, Any] = {}
    exec(example("several_machines_settings.py", prefix, server), settings)

    class Manager(ChannelLayerManager):  # type: ignore[misc]
        configs = settings["CHANNEL_LAYERS"]

    layer = Manager()["default"]

    async def main() -> None:
        channel = await layer.new_channel()
        await layer.group_add("lobby", channel)
        program: dict[str, Any] = {}
        code = example("several_machines_blocking.py", prefix, server)
        await asyncio.to_thread(exec, code, program)
        assert (await asyncio.wait_for(layer.receive(channel), LIVENESS))["type"] == "chat.message"
        program["layer"].close()
        await layer.close()

    asyncio.run(main())


def test_the_setting_of_channels_1(prefix: str, server: Server, tmp_path: Any) -> None:
    source = example("several_machines_channels1.py", prefix, server) + textwrap.dedent(
        """
        from asgi_redis import RedisLocalChannelLayer

        layer = RedisLocalChannelLayer(**CHANNEL_LAYERS["default"]["CONFIG"])
        layer.send("thumbnails", {"number": 1})
        layer.send("reply!one", {"number": 2})
        print(layer.local_layer.receive(["thumbnails"]), layer.receive(["reply!"]))
        """
    )
    with processes.running(
        [environments.environment("asgi_redis-local"), "-c", source],
        log=tmp_path / "program.log",
        environment=environments.child_environment(),
    ) as program:
        assert program.wait().endswith(
            "('thumbnails', {'number': 1}) ('reply!one', {'number': 2})\n"
        )
