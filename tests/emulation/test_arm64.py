"""The tests of what depends on the processor and the libc, on an emulated 64-bit ARM machine.

It shows word sizes, the size and the fields of a mutex, robust lists, and that two kinds of machine
agree on every byte of a segment. It cannot show what a weaker order of stores does: QEMU keeps the
order of the processor that it runs on. Nor does it show pages of other than 4 KiB.
"""

from __future__ import annotations

import faulthandler
import os
from collections import Counter
from pathlib import Path
from zlib import crc32

import pytest

from tests.environments import REPOSITORY
from tests.unit.support import FULL_LENGTH

from . import arm64
from .facts import facts

TESTS = [
    *(f"tests/unit/store/test_{name}.py" for name in ("store", "layout", "recovery")),
    *(f"tests/segment/test_{name}.py" for name in ("lock", "section", "libc", "files", "doorbell")),
    *("tests/segment/test_segment.py", "tests/segment/test_opening.py"),
    "tests/unit/segment/test_header.py",
    *("tests/unit/test_codec.py", "tests/emulation/test_words.py"),
]

# Fifty processes attach at once, and the last waits longer than the five seconds that `attach` has.
TOO_SLOW = [
    "tests/segment/test_opening.py::test_fifty_processes_at_once_get_the_same_segment",
    "tests/segment/test_opening.py::test_fifty_processes_at_once_replace_a_stale_segment_once",
]

# What the machine lacks on purpose, by the reason that the skipped test gives.
SKIPPED = {"lacking: Django"}


def test_every_file_and_test_that_is_named_exists() -> None:
    """A name that does not exist would be passed over in silence."""
    for path in TESTS:
        assert (REPOSITORY / path).is_file()
    for test in TOO_SLOW:
        path, _, name = test.partition("::")
        assert f"\ndef {name}(" in (REPOSITORY / path).read_text(encoding="utf-8")


@pytest.mark.skipif(not FULL_LENGTH, reason="for make test-all: it takes minutes")
def test_an_arm64_passes_the_tests_and_agrees_on_every_byte(tmp_path: Path) -> None:
    if os.uname().machine == "aarch64":
        pytest.skip("this is such a machine: all tests run on it")
    folder = arm64.prepare()
    faulthandler.cancel_dump_traceback_later()  # it does take that long
    told, console = arm64.run(
        folder, tmp_path, [*TESTS, *(f"--deselect={test}" for test in TOO_SLOW)]
    )
    if not told or told[-1]["kind"] != "end":
        pytest.fail(f"the machine did not come to its end:\n{console[-10_000:]}", pytrace=False)

    [there] = [line["facts"] for line in told if line["kind"] == "facts"]
    assert (there["machine"], there["word"], there["robust_mutexes"]) == ("aarch64", 8, True)
    assert there["lock_machine"] == 1 << 48 | 8 << 40 | crc32(b"aarch64")
    here = facts()
    assert there["lock_machine"] != here["lock_machine"]  # a mutex is not shared between the two
    assert there["store"] == here["store"]

    tests = [line for line in told if line["kind"] == "test"]
    failed = [line for line in tests if line["outcome"] in ("failure", "error")]
    if failed:
        texts = [f"{line['file']}::{line['name']}\n{line['text']}" for line in failed]
        pytest.fail("\n\n".join(texts), pytrace=False)
    skipped = {line["text"].partition("\n")[0] for line in tests if line["outcome"] == "skipped"}
    assert skipped <= SKIPPED
    passed = Counter(line["file"] for line in tests if line["outcome"] == "passed")
    assert sorted(passed) == sorted(TESTS)
    assert told[-1]["status"] == 0
    print(f"{sum(passed.values())} tests passed on {there}")
