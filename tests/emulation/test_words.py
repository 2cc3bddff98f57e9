"""That a word is stored and loaded whole, which is what recovery and all glances at shared memory
without the lock rely on. Run on this machine and on emulated ones."""

from __future__ import annotations

import mmap

from tests.forks import Line, child
from tests.waiting import until

ALL_BITS = 2**64 - 1


def test_a_word_is_never_seen_half_stored() -> None:
    words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def store(line: Line) -> None:
        line.say("storing")
        while True:
            words[1] = ALL_BITS
            words[1] = 0

    seen: set[int] = set()

    def look() -> bool:
        """Read for a while; whether both values have come, so that the other process ran too."""
        seen.update(words[1] for _ in range(200_000))
        return len(seen) > 1

    with child(store) as storing:
        storing.hear()
        until(look)
    assert seen == {0, ALL_BITS}
