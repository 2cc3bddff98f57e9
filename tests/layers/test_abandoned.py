"""Who stays in a group: a socket that is busy stays, one that is abandoned goes. With real layers,
and a clock that jumps.

When a channel becomes suspect and for how long is in ``unit/attachment/test_upkeep.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from asgi_ipc import IPCChannelLayer, clock
from asgi_ipc.aio import IPCChannelLayer as AsyncLayer
from asgi_ipc.attachment.suspects import PATIENCE
from asgi_ipc.command.cli import cli
from asgi_ipc.command.screen import Top
from asgi_ipc.inspection.diagnosis import diagnose
from asgi_ipc.prometheus import IPCCollector

from ..waiting import LIVENESS

EXPIRY = 60.0


class Jumps:
    """The clock of the package, which jumps when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead, self._real = 0.0, clock.monotonic
        monkeypatch.setattr(clock, "monotonic", lambda: self._real() + self._ahead)

    def __call__(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jumps:
    return Jumps(monkeypatch)


class Room:
    """A layer with two sockets in a group, one of which reads."""

    def __init__(self, layer: AsyncLayer, jump: Jumps) -> None:
        self.layer, self.jump = layer, jump

    async def enter(self) -> None:
        self.busy, self.other = await self.layer.new_channel(), await self.layer.new_channel()
        for channel in (self.busy, self.other):
            await self.layer.group_add("room", channel)

    async def read(self, channel: str) -> int:
        message = await asyncio.wait_for(self.layer.receive(channel), LIVENESS)
        return int(message["number"])

    async def broadcast(self, number: int) -> None:
        await self.layer.group_send("room", {"number": number})
        assert await self.read(self.other) == number

    async def members(self) -> set[str]:
        return set(await self.layer.group_channels("room"))

    async def silence(self, times: int) -> None:
        for _ in range(times):
            self.jump(EXPIRY)
            await self.members()  # any call does the upkeep

    async def leave_unread(self) -> None:
        """A broadcast that only the other socket reads expires."""
        await self.broadcast(0)
        await self.silence(2)
        assert (await self.layer.stats()).dropped["expired"] == 1


@pytest_asyncio.fixture
async def room(prefix: str, jump: Jumps) -> Any:
    layer = AsyncLayer(prefix, expiry=EXPIRY)
    made = Room(layer, jump)
    await made.enter()
    yield made
    await layer.close()


async def test_a_busy_socket_stays_in_its_groups(room: Room) -> None:
    await room.leave_unread()
    assert await room.members() == {room.busy, room.other}
    for number in range(1, 6):
        await room.broadcast(number)
        assert await room.read(room.busy) == number
    await room.silence(3 * PATIENCE)
    assert await room.members() == {room.busy, room.other}
    assert (await room.layer.stats()).abandoned == 0


async def test_a_socket_that_nobody_reads_is_abandoned_counted_and_logged(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    await room.leave_unread()
    await room.silence(PATIENCE - 2)
    assert await room.members() == {room.busy, room.other}
    await room.silence(2)
    assert await room.members() == {room.other}
    lines = [line for line in caplog.messages if "abandoned" in line]
    assert len(lines) == 1 and repr(room.busy) in lines[0]

    prefix = room.layer.prefix
    stats = await room.layer.stats()
    assert stats.abandoned == 1
    assert "abandoned 1 " in Top(prefix, 1.0)._summary(stats).plain
    shown = CliRunner().invoke(cli, ["stats", "--prefix", prefix, "--json", "--interval", "0"])
    assert json.loads(shown.output)["abandoned"] == 1
    shown = CliRunner().invoke(cli, ["stats", "--prefix", prefix, "--interval", "0"])
    assert "abandoned" in shown.output
    assert [found.text for found in diagnose(prefix) if "1 abandoned" in found.text]
    samples = [
        sample.value
        for metric in IPCCollector([prefix]).collect()
        for sample in metric.samples
        if sample.name == "asgi_ipc_memberships_abandoned_total"
    ]
    assert samples == [1]


async def test_a_receive_without_a_message_ends_a_suspicion(room: Room) -> None:
    await room.leave_unread()
    assert await room.layer.receive_async([room.busy.partition("!")[0] + "!"], 0) == (None, None)
    await room.silence(3 * PATIENCE)
    assert await room.members() == {room.busy, room.other}


async def test_a_renewed_membership_ends_a_suspicion(room: Room) -> None:
    await room.leave_unread()
    await room.layer.group_add("room", room.busy)
    await room.silence(3 * PATIENCE)
    assert await room.members() == {room.busy, room.other}


@pytest.fixture
def blocking(prefix: str, jump: Jumps) -> Iterator[IPCChannelLayer]:
    layer = IPCChannelLayer(prefix, expiry=EXPIRY)
    for channel in ("x!1", "x!2"):
        layer.group_add("room", channel)
    layer.send_group("room", {})
    assert layer.receive(["x!"])[0] in {"x!1", "x!2"}
    jump(EXPIRY + 1)
    assert set(layer.group_channels("room")) == {"x!1", "x!2"}
    assert layer.stats().dropped["expired"] == 1
    yield layer
    layer.close()


@pytest.mark.parametrize("times", [1, PATIENCE - 1])
def test_a_reader_of_all_that_is_busy_keeps_its_channels(
    blocking: IPCChannelLayer, jump: Jumps, times: int
) -> None:
    for _ in range(times):
        jump(EXPIRY)
        blocking.group_channels("room")
    assert blocking.receive(["x!"]) == (None, None)
    for _ in range(3 * PATIENCE):
        jump(EXPIRY)
        assert len(blocking.group_channels("room")) == 2


def test_a_reader_of_all_that_is_gone_is_abandoned(blocking: IPCChannelLayer, jump: Jumps) -> None:
    for _ in range(PATIENCE):
        assert len(blocking.group_channels("room")) == 2
        jump(EXPIRY)
    assert len(blocking.group_channels("room")) == 1
    assert blocking.stats().abandoned == 1
