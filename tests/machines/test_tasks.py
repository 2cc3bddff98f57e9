"""How coroutines that run at once are ended."""

from __future__ import annotations

import asyncio

import pytest

from asgi_ipc.machines import tasks

from ..waiting import LIVENESS


class Stubborn:
    """Goes on after its first cancellations, as a library does that swallows them."""

    def __init__(self, swallowed: int) -> None:
        self.left = swallowed
        self.ended = False

    async def run(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.left:
                    self.ended = True
                    raise
                self.left -= 1


@pytest.mark.parametrize("swallowed", [0, 1, 3])
async def test_what_swallows_a_cancellation_is_ended_too(swallowed: int) -> None:
    """Else a machine stays disconnected for ever when one of the shards fails: redis-py swallows a
    cancellation now and then."""
    stubborn = Stubborn(swallowed)

    async def fails() -> None:
        await asyncio.sleep(0)  # until the other one waits
        raise ConnectionError("the server is gone")

    both = tasks.run_until_one_ends(stubborn.run(), fails())
    with pytest.raises(ConnectionError, match="the server is gone"):
        await asyncio.wait_for(both, LIVENESS)
    assert stubborn.ended and stubborn.left == 0


async def test_the_others_are_ended_when_the_caller_is_cancelled() -> None:
    both = [Stubborn(1), Stubborn(0)]
    running = asyncio.ensure_future(tasks.run_until_one_ends(*(each.run() for each in both)))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, LIVENESS)
    assert all(each.ended for each in both)
