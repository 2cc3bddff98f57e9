"""Which channels are taken for abandoned, and when: with a clock of its own."""

from __future__ import annotations

import pytest

from asgi_ipc.attachment.suspects import MOST, PATIENCE, Suspects

EXPIRY, EVERY = 60.0, 1.0
COUNTER = 17


class Looks:
    """Suspects, and a clock that goes on between two looks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.suspects = Suspects()
        self(0.0)

    def __call__(self, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.now += seconds
            self.suspects.look(self.now, EXPIRY, EVERY)

    @property
    def abandoned(self) -> dict[bytes, int]:
        return self.suspects.abandoned(EXPIRY)


@pytest.fixture
def look() -> Looks:
    return Looks()


def test_a_suspect_is_abandoned_after_ten_times_expiry(look: Looks) -> None:
    look.suspects.add(["a"], COUNTER)
    look(EVERY, int(PATIENCE * EXPIRY) - 1)
    assert look.abandoned == {}
    look(EVERY)
    assert look.abandoned == {b"a": COUNTER}


def test_another_message_that_expires_does_not_renew_the_suspicion(look: Looks) -> None:
    look.suspects.add(["a"], COUNTER)
    look(EXPIRY, PATIENCE - 1)
    look.suspects.add(["a", "b", "b"], COUNTER + 1)
    look(EXPIRY)
    assert look.abandoned == {b"a": COUNTER}


def test_a_suspicion_that_ended_begins_anew(look: Looks) -> None:
    look.suspects.add(["a", "b"], COUNTER)
    look(EXPIRY, 5)
    del look.suspects["a"]
    look.suspects.add(["a"], COUNTER)
    look(EXPIRY, 5)
    assert look.abandoned == {b"b": COUNTER}


def test_the_time_in_which_the_process_was_stopped_counts_for_one_expiry(look: Looks) -> None:
    look.suspects.add(["a"], COUNTER)
    look(100 * EXPIRY, PATIENCE - 1)
    assert look.abandoned == {}
    look(EXPIRY)
    assert look.abandoned == {b"a": COUNTER}


@pytest.mark.parametrize("now", [-1e9, 0.0, 999.0])
def test_a_clock_that_goes_back_abandons_nobody(look: Looks, now: float) -> None:
    look.suspects.add(["a"], COUNTER)
    look.suspects.look(now, EXPIRY, EVERY)
    assert look.abandoned == {}


def test_an_expiry_shorter_than_a_look_is_not_a_stop() -> None:
    suspects = Suspects()
    suspects.look(0.0, 0.1, EVERY)
    suspects.add(["a"], COUNTER)
    suspects.look(EVERY, 0.1, EVERY)
    assert suspects.abandoned(0.1) == {b"a": COUNTER}


def test_the_number_of_suspects_is_bounded(look: Looks) -> None:
    look.suspects.add([str(number) for number in range(MOST + 5)], COUNTER)
    assert len(look.suspects) == MOST
    look.suspects.pop("0")
    look.suspects.add(["late", "later"], COUNTER)
    assert len(look.suspects) == MOST and "late" in look.suspects
