"""Many threads of one process, and the judge of what they got. Meant for a Python without the GIL,
where all of them run at once; ``make pythons`` runs it there.

Longer: ``python -m tests.reliability.threads --help``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from ..processes import running
from ..proofs import Record
from .threads import Log, Round

SECONDS = 60 if os.environ.get("ASGI_IPC_TEST_LENGTH") == "full" else 5
REPOSITORY = Path(__file__).resolve().parents[2]


def test_threads_lose_nothing_and_get_nothing_twice(
    tmp_path: Path, record_property: Record
) -> None:
    command = [sys.executable, "-m", "tests.reliability.threads", "--seconds", str(SECONDS)]
    with running(command, log=tmp_path / "output", folder=REPOSITORY) as process:
        code = process.wait_for_end(timeout=5 * SECONDS + 300)
        output = process.output()
    print(output)
    assert code == 0, output
    figures = json.loads(output[output.index("{") : output.rindex("}") + 1])
    # There was something to judge.
    assert figures["received"] > 50 * SECONDS
    assert figures["broadcasts"] and figures["layers attached"] and figures["calls beside flushes"]
    assert figures["published"] and figures["waited for room"] and figures["cancelled sends"]
    record_property("messages received", figures["received"])


# -- the judge finds what is wrong ----------------------------------------------------------------


def judged(prefix: str, *got: int) -> list[str]:
    """What the judge says of a reader that got these, of the messages 0 and 1."""
    round_ = Round(prefix, 0)
    round_.sent["a", "c"] = 2
    log = Log("b")
    log.got += [("c", "a", "c", number) for number in got]
    round_.logs.append(log)
    try:
        round_.judge()
        return round_.problems
    finally:
        round_.end()


def test_judge_of_threads_finds_what_is_wrong(prefix: str) -> None:
    assert judged(prefix, 0, 1) == []
    assert "lost" in str(judged(prefix, 0))
    assert "twice" in str(judged(prefix, 0, 1, 1))
    assert "after" in str(judged(prefix, 1, 0))
    assert "never sent" in str(judged(prefix, 0, 1, 2))
