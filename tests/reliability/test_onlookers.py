"""`verify`, `doctor` and `top` beside traffic and kills of all kinds: they find no damage, keep the
lock, and disturb nobody. Longer: ``python -m tests.reliability.onlookers --help``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from asgi_ipc.segment.lock import robust_mutexes

from ..processes import running
from .history import REPOSITORY
from .onlookers import LOOKS

SECONDS = 180 if os.environ.get("ASGI_IPC_TEST_LENGTH") == "full" else 15

pytestmark = pytest.mark.skipif(not robust_mutexes(), reason="lacking: robust mutexes")


def test_onlookers_find_no_damage_and_do_none(tmp_path: Path) -> None:
    pytest.importorskip("textual", reason="lacking: textual")
    command = [sys.executable, "-m", "tests.reliability.onlookers", "--seconds", str(SECONDS)]
    with running(command, log=tmp_path / "output", folder=REPOSITORY) as process:
        code = process.wait_for_end(timeout=5 * SECONDS + 120)
        output = process.output()
    print(output)
    assert code == 0, output
    figures = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert set(figures["looks"]) == set(LOOKS)
    assert all(figures["looks"].values()), output
    assert figures["history"]["received"] > SECONDS
