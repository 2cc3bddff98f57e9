"""docs/asgi-ipc.1 is what its script draws from the subcommands, and is a man page."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import version

import pytest

from asgi_ipc.command.subcommands import SUBCOMMANDS
from tests import environments

DOCS = environments.REPOSITORY / "docs"
PAGE = DOCS / "asgi-ipc.1"


def test_the_page_is_up_to_date() -> None:
    pytest.importorskip("click", reason="lacking: click")
    if tuple(map(int, version("click").split(".")[:2])) < (8, 2):
        pytest.skip("lacking: a click that words its help as on the page")
    environments.run_script(DOCS / "draw_man_page.py", "--check")


def test_every_subcommand_is_on_the_page() -> None:
    source = PAGE.read_text(encoding="utf-8").replace("\\-", "-")
    for section in SUBCOMMANDS.values():
        for name in section:
            assert re.search(rf'^\.SS "asgi-ipc {name} ', source, re.M)


def test_man_shows_it_without_a_complaint() -> None:
    if shutil.which("groff") is None:
        pytest.skip("lacking: groff")
    shown = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", PAGE], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    plain = re.sub(r".\x08|\x1b\[[0-9;]*m", "", shown.stdout)
    assert "--unused" in plain and 'eval "$(_ASGI_IPC_COMPLETE=bash_source asgi-ipc)"' in plain
