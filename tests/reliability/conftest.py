"""What the proofs of reliability share: processes that do the work of a test for it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pytest

from .stepping import WORKERS


@pytest.fixture(scope="session")
def workers() -> Iterator[Executor]:
    """One process for each processor, started anew: small, and without threads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
        yield executor
