"""The compiled path does what the Python code does: every byte, answer and exception is equal."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..compiling import compiler, native_variant, needs_compiled, run_with
from ..proofs import Record
from ..unit.support import FULL_LENGTH, examples
from ..waiting import LIVENESS
from . import twins

pytestmark = needs_compiled

SANITIZED = 400 if FULL_LENGTH else 12  # histories
FUZZED = 300.0 if FULL_LENGTH else 3.0  # seconds


def test_twins_agree(record_property: Record) -> None:
    done: Counter[str] = Counter()

    @examples(60)
    @given(st.integers(0, 2**32), st.booleans())
    def run(number: int, damaged: bool) -> None:
        counts = twins.history(number, damaged)
        done.update(counts, histories=1, damaged=damaged)

    run()
    assert done["damaged"] >= done["histories"] / 4
    assert done["damage"] > 2 * done["damaged"]
    # The compiled path did the greater part, and the Python code was asked, too.
    shares = {"send": 10, "receive": 1, "receive_exact": 0.3, "take": 1}
    for name, share in {**shares, "parked": 1, "picked": 0.3, "owed": 0.02}.items():
        assert done[name] > share * done["histories"], done
    assert done["error"] > done["histories"]
    record_property("histories", done["histories"])
    record_property("calls", done["histories"] * twins.STEPS)


def sanitizer(name: str) -> str:
    """The library of a sanitizer, which has to be loaded before Python; else skip the test."""
    asked = [compiler(), f"-print-file-name={name}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"lacking: {name}")
    return found


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The compiled path with AddressSanitizer and UndefinedBehaviorSanitizer, and what a Python
    that loads it needs."""
    variant = native_variant(
        tmp_path_factory.mktemp("sanitized"),
        *("-O1", "-g", "-fno-omit-frame-pointer"),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        "-fsanitize-coverage=trace-pc",
        more=(Path(__file__).with_name("fuzzing.c"),),
    )
    libraries = " ".join(map(sanitizer, ("libasan.so", "libubsan.so")))
    # Python itself leaves memory to the end of the process, and has its own allocator for small
    # objects, which would hide where they end.
    return variant, {
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }


def test_twins_agree_under_the_sanitizers(sanitized: Any) -> None:
    variant, environment = sanitized
    done = run_with(
        variant,
        *("tests.reliability.twins", str(SANITIZED)),
        timeout=SANITIZED * LIVENESS,
        **environment,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_the_sanitizers_are_at_work(sanitized: Any) -> None:
    """A message that is one byte longer than its bytes object."""
    variant, environment = sanitized
    done = run_with(
        variant, *("tests.reliability.fuzzer", "overrun"), timeout=LIVENESS, **environment
    )
    assert done.returncode != 0 and "AddressSanitizer" in done.stdout, done.stdout[-2000:]


def test_no_bytes_make_the_decoder_read_what_is_not_there(
    sanitized: Any, record_property: Record
) -> None:
    """By a fuzzer that keeps what reaches code which nothing reached before."""
    variant, environment = sanitized
    done = run_with(
        variant,
        *("tests.reliability.fuzzer", str(FUZZED)),
        timeout=FUZZED + 10 * LIVENESS,
        **environment,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    inputs, places = map(int, done.stdout.split()[-2:])
    assert inputs > 100 and places > 50, done.stdout
    record_property("fuzzed messages", inputs)
