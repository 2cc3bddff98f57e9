"""What tasks that use one subscription at once leave behind, where each suspends at the worst time:
as while the lock is busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgi_ipc.aio.operations import Core
from asgi_ipc.errors import LockBusy, NotSubscribed
from asgi_ipc.testing.aio import InProcessChannelLayer
from asgi_ipc.testing.sync import InProcessChannelLayer as BlockingLayer

from ...forks import bounded
from ...waiting import LIVENESS, eventually


class Slow(InProcessChannelLayer):
    """A layer whose `group_add` waits to be let go on, while it is `held`: before it adds if it is
    `late`, else after that."""

    held: asyncio.Event | None = None
    late = False

    async def group_add(self, group: str, channel: str) -> None:
        if not self.late:
            await super().group_add(group, channel)
        self.adding.set()
        if self.held is not None:
            await self.held.wait()
        if self.late:
            await super().group_add(group, channel)

    def hold(self) -> None:
        self.held, self.adding = asyncio.Event(), asyncio.Event()

    def let_go(self) -> None:
        assert self.held is not None
        self.held.set()
        self.held = None

    adding: asyncio.Event


@pytest.fixture(params=[False, True], ids=["added", "to be added"])
async def layer(prefix: str, request: pytest.FixtureRequest) -> AsyncIterator[Slow]:
    with bounded():
        async with Slow(prefix) as made:
            made.late = request.param
            made.adding = asyncio.Event()
            yield made


async def members(layer: Slow, group: str = "news") -> int:
    return len(await layer.group_channels(group))


async def test_what_is_left_while_it_is_joined_stays_left(layer: Slow) -> None:
    async with layer.subscribe() as events:
        layer.hold()
        joining = asyncio.ensure_future(events.join("news"))
        await layer.adding.wait()
        await events.leave("news")
        layer.let_go()
        await joining
        assert (events.groups, await members(layer)) == ([], 0)


async def test_what_is_left_while_it_is_renewed_stays_left(layer: Slow) -> None:
    async with layer.subscribe("news") as events:
        layer.hold()
        membership = events._membership
        assert membership._place is not None
        renewing = asyncio.ensure_future(membership._renew(membership._place, None))
        await layer.adding.wait()
        await events.leave("news")
        layer.let_go()
        await renewing
        assert await members(layer) == 0


async def test_a_renewal_does_not_outlive_the_block(layer: Slow) -> None:
    async with layer.subscribe("news") as events:
        layer.hold()
        membership = events._membership
        assert membership._place is not None
        renewing = asyncio.ensure_future(membership._renew(membership._place, None))
        await layer.adding.wait()
    layer.let_go()
    await renewing
    assert await members(layer) == 0


async def test_what_joins_again_does_not_outlive_the_block(layer: Slow) -> None:
    async with layer.subscribe("news") as events:
        await layer.flush()
        layer.hold()
        getting = asyncio.ensure_future(events.get())
        await layer.adding.wait()
    layer.let_go()
    with pytest.raises(NotSubscribed):
        await getting
    assert await members(layer) == 0


async def test_of_two_that_join_again_one_stays(layer: Slow) -> None:
    async with layer.subscribe("news") as events:
        await layer.flush()
        layer.hold()
        getting = [asyncio.ensure_future(events.get()) for _ in range(3)]
        await layer.adding.wait()
        await asyncio.sleep(0)
        layer.let_go()

        async def one() -> bool:
            return await members(layer) == 1

        await eventually(one)
        for _ in getting:
            await layer.group_send("news", {})
        await asyncio.wait_for(asyncio.gather(*getting), LIVENESS)
        assert (await members(layer), events.gaps) == (1, 1)


async def test_what_is_joined_meanwhile_is_joined_again(layer: Slow) -> None:
    async with layer.subscribe("news") as events:
        await layer.flush()
        layer.hold()
        getting = asyncio.ensure_future(events.get())
        await layer.adding.wait()
        joining = asyncio.ensure_future(events.join("weather"))
        await asyncio.sleep(0)
        layer.let_go()
        await joining
        await layer.group_send("weather", {"n": 1})
        assert await getting == {"n": 1}
        assert await members(layer) == await members(layer, "weather") == 1


async def test_a_join_that_is_cancelled_joins_nothing(layer: Slow) -> None:
    async with layer.subscribe() as events:
        layer.hold()
        joining = asyncio.ensure_future(events.join("news"))
        await layer.adding.wait()
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        layer.let_go()
        assert (events.groups, await members(layer)) == ([], 0)


async def test_entering_that_is_cancelled_joins_nothing(layer: Slow) -> None:
    layer.hold()
    entering = asyncio.ensure_future(layer.subscribe("news", "weather").__aenter__())
    await layer.adding.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    layer.let_go()
    assert await members(layer) == await members(layer, "weather") == 0


async def test_a_block_that_is_cancelled_at_its_end_is_left(
    layer: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the lock is busy."""
    discard, busy = layer._core.group_discard, [True] * 3

    def group_discard(*args: Any) -> None:
        if busy:
            busy.pop()
            raise LockBusy(1)
        discard(*args)

    async def block() -> None:
        async with layer.subscribe("news"):
            monkeypatch.setattr(layer._core, "group_discard", group_discard)

    ending = asyncio.ensure_future(block())
    while len(busy) == 3:
        await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert await members(layer) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_while_it_leaves_its_groups_leaves_them(
    prefix: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler raises one, or an allocation that fails."""
    with BlockingLayer(prefix) as layer:
        discard, to_raise = Core.group_discard, [error]

        def interrupted(core: Core, group: str, channel: str) -> None:
            if to_raise:
                raise to_raise.pop()
            discard(core, group, channel)

        with pytest.raises(error):
            with layer.subscribe("news", "sport"):
                monkeypatch.setattr(Core, "group_discard", interrupted)
        assert layer.group_channels("news") == layer.group_channels("sport") == []


def test_an_exception_while_it_joins_its_groups_joins_none(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BlockingLayer(prefix) as layer:
        add, to_come = layer.group_add, iter(["news", KeyboardInterrupt])

        def interrupted(group: str, channel: str) -> None:
            add(group, channel)
            if next(to_come) is KeyboardInterrupt:
                raise KeyboardInterrupt

        monkeypatch.setattr(layer, "group_add", interrupted)
        with pytest.raises(KeyboardInterrupt), layer.subscribe("news", "sport"):
            pass
        assert layer.group_channels("news") == layer.group_channels("sport") == []
