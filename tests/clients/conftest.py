"""What several tests of real clients start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import demo


@pytest.fixture
def site(prefix: str, tmp_path: Path) -> Iterator[demo.Site]:
    """The running demo, under a prefix of its own."""
    with demo.running(prefix, tmp_path) as site:
        yield site
