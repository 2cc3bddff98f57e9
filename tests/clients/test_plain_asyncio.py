"""Two asyncio programs and no Django: one sends, the other receives."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable

import pytest

from tests import environments, processes

PROGRAMS = Path(__file__).parent / "programs"
OPTIONAL = {"cryptography", "daphne", "django", "redis", "twisted"}

Start = Callable[..., AbstractContextManager[processes.Process]]


@pytest.fixture
def start(prefix: str, tmp_path: Path) -> Start:
    def start(program: str, *arguments: str) -> AbstractContextManager[processes.Process]:
        return processes.running(
            [sys.executable, PROGRAMS / program, prefix, *arguments],
            log=tmp_path / f"{program}.log",
            environment=environments.child_environment(),
        )

    return start


def outcome(process: processes.Process) -> dict[str, Any]:
    """The last line that it wrote; nothing optional may have been imported on the way."""
    told: dict[str, Any] = json.loads(process.wait().splitlines()[-1])
    assert not OPTIONAL.intersection(told.pop("modules"))
    return told


def test_messages_outlive_their_sender(start: Start) -> None:
    with start("producer.py", "100") as producer:
        assert outcome(producer) == {"refused": 0}
    with start("consumer.py") as consumer:
        assert outcome(consumer) == {"numbers": list(range(100))}


def test_many_more_messages_than_a_channel_holds(start: Start) -> None:
    with start("consumer.py") as consumer:
        consumer.wait_for_output("ready")
        with start("producer.py", "2000") as producer:
            outcome(producer)
            assert outcome(consumer) == {"numbers": list(range(2000))}
