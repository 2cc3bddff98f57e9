"""Layers of a prefix of their own, which are closed after the test."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from .layers import Make


@pytest.fixture
def make(prefix: str) -> Iterator[Make]:
    made = Make(prefix)
    yield made
    for layer in made.made:
        closing = layer.close()
        if inspect.isawaitable(closing):
            asyncio.run(closing)
    made.drop()
