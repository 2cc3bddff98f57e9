"""The command as such: help, versions, completion, and what it says when something is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_ipc
from asgi_ipc.command.cli import cli

from ..environments import REPOSITORY, child_environment
from .conftest import Live, Run
from .conftest import asgi_ipc as run_command

COMMANDS = sorted(cli.commands)


def test_the_console_script_is_the_module() -> None:
    script = Path(sys.executable).parent / "asgi-ipc"
    if not script.exists():
        pytest.skip("lacking: the package is not installed")
    asked = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert asked.stdout == run_command("--version").output
    assert asgi_ipc.__version__ in asked.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_a_place_in_the_documentation(command: str) -> None:
    ran = run_command(command, "--help")
    assert ran.code == 0 and ran.output.startswith(f"Usage: asgi-ipc {command}")
    page = (REPOSITORY / "docs" / "command.rst").read_text(encoding="utf-8")
    assert f"``asgi-ipc {command}" in page
    for option in re.findall(r"^  (--[a-z-]+)", ran.output, re.M):
        if option != "--help":
            assert f"``{option}" in page, f"{option} of {command} is not on the page"


def test_wrong_usage_is_exit_status_2(run: Run) -> None:
    for arguments in (("no-such-command",), ("stats", "--no-such-option"), ("send",)):
        assert run(*arguments).code == 2


def test_a_prefix_that_cannot_be_is_said(run: Run) -> None:
    ran = run("stats", "--prefix", "a/b")
    assert ran.code == 2 and "'a/b'" in ran.errors


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    source = (
        f"import sys; sys.modules[{missing!r}] = None\nfrom asgi_ipc.command import main\nmain()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", source],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3
    assert "pip install 'asgi_ipc[cli]'" in ran.stderr and "Traceback" not in ran.stderr


def complete(*words: str) -> list[str]:
    ran = run_command(
        _ASGI_IPC_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(("asgi-ipc", *words)),
        COMP_CWORD=str(len(words)),
    )
    return [line.partition(",")[2] for line in ran.output.splitlines()]


def test_completion_of_commands_prefixes_and_channels(live: Live) -> None:
    assert complete("proc") == ["processes"]
    assert live.prefix in complete("stats", "--prefix", live.prefix[:4])
    assert complete("channels", "--prefix", live.prefix, "b") == ["backlog"]
    assert complete("groups", "--prefix", live.prefix, "r") == ["room"]
