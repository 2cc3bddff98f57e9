"""Channels 1's live-server test case on our layer: made in one process, used in forked ones."""

from __future__ import annotations

import re
from pathlib import Path

from tests import environments, processes

SITE = Path(__file__).parent / "channels1_site"


def test_live_server(prefix: str, tmp_path: Path) -> None:
    python = environments.environment("channels1")
    with processes.running(
        [python, SITE / "manage.py", "test", "tests.clients.channels1_site.live_server"],
        log=tmp_path / "suite.log",
        environment=environments.child_environment(
            SITE_PREFIX=prefix,
            SITE_DATABASE=str(tmp_path / "database"),
            DJANGO_SETTINGS_MODULE="tests.clients.channels1_site.settings",
        ),
        folder=tmp_path,
    ) as suite:
        output = suite.wait()
        assert re.search(r"^Ran 6 tests", output, re.MULTILINE), output
        assert output.splitlines().count("OK") == 1, output
