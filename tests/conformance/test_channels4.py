"""The contract of Channels 4, run for our asyncio layers and the in-memory layer of Channels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.conformance import Channels4Contract
from asgi_ipc.testing.aio import InProcessChannelLayer

from ..waiting import LIVENESS

try:
    from channels.layers import InMemoryChannelLayer
except ImportError:
    InMemoryChannelLayer = None


class TestAsyncioLayer(Channels4Contract):
    liveness = LIVENESS
    layer_class: ClassVar[type[IPCChannelLayer]] = IPCChannelLayer

    @property
    def ChannelFull(self) -> type[Exception]:
        return self.made[0].ChannelFull

    @property
    def MessageTooLarge(self) -> type[Exception]:
        return self.made[0].MessageTooLarge

    @pytest_asyncio.fixture
    async def make_layer(self, prefix: str) -> AsyncIterator[Callable[..., Any]]:
        self.made: list[Any] = []

        def make(**options: Any) -> Any:
            self.made.append(self.layer_class(prefix, **options))
            return self.made[-1]

        yield make
        for layer in self.made:
            await layer.close()

    def make_peer(self, layer: Any) -> Any:
        self.made.append(self.layer_class(layer.prefix, **self.options))
        return self.made[-1]


class TestInProcessAsyncioLayer(TestAsyncioLayer):
    layer_class = InProcessChannelLayer


@pytest.mark.skipif(InMemoryChannelLayer is None, reason="lacking: Channels 4")
class TestInMemory(Channels4Contract):
    known_failures = {
        **dict.fromkeys(
            (
                "test_other_channel_name_is_refused[digit beyond ASCII]",
                "test_other_channel_name_is_refused[letter beyond ASCII after !]",
                "test_other_channel_name_is_refused[newline at the end]",
                "test_other_group_name_is_refused[digit beyond ASCII]",
                "test_other_group_name_is_refused[newline at the end]",
            ),
            "its patterns for names let other letters and digits through, and a last newline",
        ),
        **dict.fromkeys(
            (
                "test_channel_name[single?reader]",
                "test_order_of_one_writer_and_one_reader_is_exact[single-reader]",
            ),
            "it has no single-reader channels",
        ),
        **dict.fromkeys(
            (
                "test_many_readers",
                "test_one_message_for_one_waiter",
                "test_cancelled_receive_leaves_the_message_to_the_next",
            ),
            "a receive that ends takes the empty queue away from under the others who wait for it",
        ),
        "test_keys_are_str": "it does not look into messages",
        "test_message_over_the_limit_is_too_large": "it has no limit",
        "test_process_specific_channels_share_a_capacity": "each has its own there",
        "test_works_in_several_loops_at_once": "a send does not wake another thread's loop",
    }
    liveness = 1.0
    granularity = 1.0

    @pytest.fixture
    def make_layer(self) -> Callable[..., Any]:
        return InMemoryChannelLayer

    def make_peer(self, layer: Any) -> Any:
        return layer
