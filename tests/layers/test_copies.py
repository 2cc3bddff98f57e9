"""Copies of a layer: those of `copy`, and what pools and schedulers make of a layer that a task
brings along, in another process. Each is a layer with the same options."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer, aio

OPTIONS: dict[str, Any] = {
    "expiry": 30,
    "channel_capacity": {"a*": 2, re.compile("b"): 3},
    "symmetric_encryption_keys": ["a-key"],
    "message_memory": 8 << 20,
}


def unpickled(layer: Any) -> Any:
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, unpickled])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["defaults", "options"])
@pytest.mark.parametrize("kind", [IPCChannelLayer, aio.IPCChannelLayer])
def test_a_copy_has_the_same_options(
    kind: Any, options: dict[str, Any], make: Callable[[Any], Any], prefix: str
) -> None:
    layer = kind(prefix, **options)
    again = make(layer)
    assert type(again) is kind and again is not layer and again.prefix == prefix
    assert again._options == layer._options
    assert again.get_capacity("another") == layer.get_capacity("another")


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, unpickled])
def test_a_copy_exchanges_messages_and_closes_nothing(
    make: Callable[[Any], Any], prefix: str
) -> None:
    layer = IPCChannelLayer(prefix, symmetric_encryption_keys=["a-key"])
    layer.send("a", {"n": 1})  # it is used when it is copied
    again = make(layer)
    assert again.receive(["a"]) == ("a", {"n": 1})
    again.close()
    layer.send("a", {"n": 2})
    assert layer.receive(["a"]) == ("a", {"n": 2})
    layer.close()


def announce(layer: IPCChannelLayer, number: int) -> None:
    layer.send("done", {"n": number})
    layer.close()


def test_a_task_brings_a_layer_along(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("other", {})
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(announce, [layer] * 4, range(4)))
    received = [layer.receive(["done"])[1] for _ in range(4)]
    assert sorted(message["n"] for message in received if message) == [0, 1, 2, 3]
    layer.close()
