"""Many processes of all kinds, killed, stopped and cancelled; and the judge of what they did.

Longer, or with the seed that a failure names: ``python -m tests.reliability.history --help``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ..processes import running
from ..proofs import Record
from .history import AFTER_KILL, KINDS, REPOSITORY, Disturbance, Event, judge

SECONDS = 300 if os.environ.get("ASGI_IPC_TEST_LENGTH") == "full" else 12


@pytest.mark.parametrize("hints", ["as they are", "nonsense"])
def test_history(tmp_path: Path, record_property: Record, hints: str) -> None:
    command = [sys.executable, "-m", "tests.reliability.history", "--seconds", str(SECONDS)]
    if hints == "nonsense":
        command.append("--nonsense")
    with running(command, log=tmp_path / "output", folder=REPOSITORY) as process:
        code = process.wait_for_end(timeout=5 * SECONDS + 120)
        output = process.output()
    print(output)
    assert code == 0, output
    figures = json.loads(output[output.index("{") : output.rindex("}") + 1])
    # There was something to judge: enough of everything, and most of it in calm times.
    assert figures["received"] > 100 * SECONDS
    assert figures["calls_judged"] > 100 * SECONDS
    assert figures["calm_seconds"] > SECONDS / 10
    assert figures["killed"] >= SECONDS / 15
    assert figures["processes"] > 2 * len(KINDS)
    assert {"SIGKILL", "SIGSTOP"} <= set(figures["disturbances"])
    record_property("messages received", figures["received"])
    record_property("processes killed", figures["killed"])


# -- the judge finds what is wrong ----------------------------------------------------------------

DROPS = dict.fromkeys(("expired", "capacity", "memory", "undecodable", "dead_owner", "buffer"), 0)


def sent(number: int, at: float, channel: str = "c", took: float = 0.001) -> list[Event]:
    uid = f"a.main.{number}"
    return [
        Event("a", "send", uid, channel, at, 0.0, 0.0),
        Event("a", "sent", uid, channel, at, at + took, 0.0),
    ]


def got(number: int, begin: float, end: float, channel: str = "c", by: str = "b") -> Event:
    return Event(by, "got", f"a.main.{number}", channel, begin, end, 0.0)


def problems_of(
    *events: Sequence[Event] | Event,
    killed: Sequence[str] = (),
    disturbances: Sequence[Disturbance] = (),
    **drops: int,
) -> str:
    flat = [e for event in events for e in ([event] if isinstance(event, Event) else event)]
    problems, _figures = judge(flat, killed, {**DROPS, **drops}, disturbances, 0.0, 10.0)
    return "; ".join(problems)


def test_judge_finds_nothing_in_a_good_history() -> None:
    assert not problems_of(
        sent(1, 1.0), sent(2, 1.1), got(1, 1.05, 1.06), got(2, 1.07, 1.12, by="d")
    )


def test_judge_finds_a_duplicate() -> None:
    assert "duplicate" in problems_of(sent(1, 1.0), got(1, 1.0, 1.01), got(1, 1.0, 1.01, by="d"))


def test_judge_lets_every_member_of_a_group_have_a_broadcast() -> None:
    events = sent(1, 1.0, "everyone"), got(1, 1.0, 1.01, "x!1"), got(1, 1.0, 1.01, "y!1")
    assert not problems_of(*events)
    assert "duplicate" in problems_of(*events, got(1, 1.0, 1.01, "y!1"))


def test_judge_finds_another_order_with_one_reader() -> None:
    swapped = got(2, 1.3, 1.31), got(1, 1.32, 1.33)
    assert "taken before" in problems_of(sent(1, 1.0), sent(2, 1.1), *swapped)


def test_judge_finds_another_order_with_two_readers() -> None:
    events = sent(1, 1.0), sent(2, 1.1), got(2, 1.2, 1.21, by="d")
    assert "taken before" in problems_of(*events, got(1, 1.22, 1.23))
    # Two receives at once may well log in another order than they took.
    assert not problems_of(*events, got(1, 1.205, 1.23))


def test_judge_finds_a_lost_message() -> None:
    assert "1 messages were lost" in problems_of(sent(1, 1.0))
    assert not problems_of(sent(1, 1.0), expired=1)
    assert not problems_of(sent(1, 1.0), killed=["b"])
    assert "2 messages were lost" in problems_of(sent(1, 1.0), sent(2, 1.1), killed=["b"])


def test_judge_finds_a_lost_message_to_a_living_process() -> None:
    born = Event("b", "born", "", "x!", 0.0, 0.0, 0.0)
    assert "living" in problems_of(born, sent(1, 1.0, "x!1"))
    assert not problems_of(born, sent(1, 1.0, "x!1"), killed=["b"])


def test_judge_finds_what_nobody_sent() -> None:
    assert "nobody sent it" in problems_of(got(1, 1.0, 1.01))
    refused = sent(1, 1.0)[:1] + [Event("a", "full", "a.main.1", "c", 1.0, 1.001, 0.0)]
    assert "refused" in problems_of(refused, got(1, 1.0, 1.01))


@pytest.mark.parametrize("what", ["sent", "waited", "got"])
def test_judge_finds_a_call_that_took_too_long(what: str) -> None:
    events: dict[str, list[Any]] = {
        "sent": [sent(1, 1.0, took=0.3), got(1, 1.0, 1.301)],
        "waited": [Event("b", "waited", "", "", 1.0, 1.51, 0.0)],
        "got": [sent(1, 1.0), got(1, 0.5, 1.3)],
    }
    assert "unexplained" in problems_of(*events[what])
    killing = Disturbance("SIGKILL", "d", 0.9, 0.9 + AFTER_KILL)
    assert not problems_of(*events[what], killed=["d"], disturbances=[killing])
    before = Disturbance("SIGKILL", "d", 0.0, 0.9)
    assert "unexplained" in problems_of(*events[what], killed=["d"], disturbances=[before])


def test_judge_counts_only_the_time_on_a_processor() -> None:
    slow = Event("a", "sent", "a.main.1", "c", 1.0, 1.4, 0.2)
    assert not problems_of(sent(1, 1.0)[:1], slow, got(1, 1.0, 1.401))


def test_judge_finds_an_error() -> None:
    assert "raised Boom" in problems_of(Event("a", "error", "", "Boom", 0.0, 0.0, 0.0))
