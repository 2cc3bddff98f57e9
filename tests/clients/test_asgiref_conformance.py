"""The conformance suite that asgiref 1.1.2 has for layers, on the oldest and the newest Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import environments, processes

SUITE = Path(__file__).parent / "programs" / "asgiref_conformance.py"


@pytest.mark.parametrize("python", ["asgiref1-oldest", "asgiref1-newest"])
def test_conformance(prefix: str, tmp_path: Path, python: str) -> None:
    with processes.running(
        [environments.environment(python), SUITE, prefix],
        log=tmp_path / "suite.log",
        environment=environments.child_environment(),
        folder=tmp_path,
    ) as suite:
        output = suite.wait()
        assert json.loads(output.splitlines()[-1]) == {"run": 18, "failed": [], "skipped": []}
