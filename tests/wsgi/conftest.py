"""Layers, and workers in threads of this process, for the tests of the WSGI adapters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.wsgi import AsgiToWsgiWorker

from ..waiting import LIVENESS


@pytest.fixture
def layer(prefix: str) -> Iterator[IPCChannelLayer]:
    layer = IPCChannelLayer(prefix)
    yield layer
    layer.close()


@pytest.fixture
def work(layer: IPCChannelLayer) -> Iterator[Callable[..., AsgiToWsgiWorker]]:
    """Return a function that starts a worker with an application; the worker ends with the test."""
    started = []

    def start(application: Any, **options: Any) -> AsgiToWsgiWorker:
        worker = AsgiToWsgiWorker(layer, application, **options)
        thread = threading.Thread(target=worker.run)
        thread.start()
        started.append((worker, thread))
        return worker

    yield start
    for worker, _ in started:
        worker.stop()
    for _, thread in started:
        thread.join(LIVENESS)
        assert not thread.is_alive()
