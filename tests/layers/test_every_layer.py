"""What all layers of the package offer to programs beyond the contracts: those over shared memory,
those over several machines and those for tests, blocking and for asyncio."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
import asgi_ipc.testing.aio
import asgi_ipc.testing.sync
from asgi_ipc import segment
from asgi_ipc.errors import InvalidMessage, InvalidOption

Make = Callable[..., Any]

ASYNCIO = {
    "asyncio": asgi_ipc.aio.IPCChannelLayer,
    "asyncio, in process": asgi_ipc.testing.aio.InProcessChannelLayer,
    "asyncio, several machines": asgi_ipc.aio.LocalAndRemoteChannelLayer,
}
BLOCKING = {
    "blocking": asgi_ipc.IPCChannelLayer,
    "blocking, in process": asgi_ipc.testing.sync.InProcessChannelLayer,
    "blocking, several machines": asgi_ipc.LocalAndRemoteChannelLayer,
}
VALUES = {
    "price": decimal.Decimal("1.50"),
    "at": datetime.date(2026, 2, 1),
    "rows": [{"id": uuid.UUID(int=1)}],
}
SENT = {
    "price": "1.50",
    "at": "2026-02-01",
    "rows": [{"id": "00000000-0000-0000-0000-000000000001"}],
}


def _maker(prefix: str, cls: Any) -> Iterator[Make]:
    names = set()

    def make(number: int = 1, **options: Any) -> Any:
        names.add(name := f"{prefix}-{number}")
        if not issubclass(
            cls, (asgi_ipc.LocalAndRemoteChannelLayer, asgi_ipc.aio.LocalAndRemoteChannelLayer)
        ):
            return cls(name, **options)
        names.add(f"{prefix}-remote")
        remote = {
            "BACKEND": "asgi_ipc.aio.IPCChannelLayer",
            "CONFIG": {"prefix": f"{prefix}-remote"},
        }
        return cls(remote, {"prefix": name, **options})

    yield make
    for name in names:
        segment.destroy(name)


@pytest.fixture(params=ASYNCIO.values(), ids=ASYNCIO.keys())
def make_asyncio(prefix: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from _maker(prefix, request.param)


@pytest.fixture(params=BLOCKING.values(), ids=BLOCKING.keys())
def make_blocking(prefix: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from _maker(prefix, request.param)


# -- default --------------------------------------------------------------------------------------


async def test_default_converts_what_asyncio_layers_send(make_asyncio: Make) -> None:
    layer = make_asyncio(default=str)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.send(channel, VALUES)
    await layer.group_send("room", VALUES)
    assert [await layer.receive(channel) for _ in range(2)] == [SENT, SENT]
    await layer.close()


def test_default_converts_what_blocking_layers_send(make_blocking: Make) -> None:
    layer = make_blocking(default="builtins.str")
    layer.group_add("room", "jobs")
    layer.send("jobs", VALUES)
    layer.send_group("room", VALUES)
    assert [layer.receive(["jobs"]) for _ in range(2)] == [("jobs", SENT)] * 2
    layer.close()


def test_default_that_cannot_be_called_fails_in_the_constructor(make_blocking: Make) -> None:
    with pytest.raises(InvalidOption, match="default"):
        make_blocking(default=5)


def test_what_default_refuses_is_not_sent(make_blocking: Make) -> None:
    def refuse(value: object) -> object:
        raise TypeError("no")

    layer = make_blocking(default=refuse)
    with pytest.raises(InvalidMessage, match="message"):
        layer.send("jobs", VALUES)
    assert layer.receive(["jobs"]) == (None, None)
    layer.close()


@pytest.mark.parametrize("make_asyncio", [asgi_ipc.aio.LocalAndRemoteChannelLayer], indirect=True)
async def test_default_converts_what_goes_to_other_machines(make_asyncio: Make) -> None:
    here, there = make_asyncio(1, default=str), make_asyncio(2)
    channel = await there.new_channel()
    await here.send(channel, VALUES)
    assert await there.receive(channel) == SENT
    await there.group_add("room", channel)
    await here.group_send("room", VALUES)
    assert await there.receive(channel) == SENT
    await here.close()
    await there.close()
