"""The command as such: help, versions, completion, and what it says when something is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import asgi_ipc
from asgi_ipc.command.cli import cli
from asgi_ipc.command.subcommands import SUBCOMMANDS

from ..environments import REPOSITORY, child_environment
from .conftest import Live, Run
from .conftest import asgi_ipc as run_command

COMMANDS = [name for section in SUBCOMMANDS.values() for name in section]


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


def test_a_misspelt_command_suggests_near_ones() -> None:
    ran = run_command("chanels")
    assert ran.code == 2 and "no command 'chanels': did you mean channels?" in ran.errors
    assert "--help lists the commands" in run_command("xyz").errors


@pytest.mark.parametrize("command", ["list", "stats", "doctor"])
def test_output_that_cannot_be_written_is_said(live: Live, command: str) -> None:
    line = f"{sys.executable} -m asgi_ipc {command}"
    environment = child_environment(ASGI_IPC_PREFIX=live.prefix)
    full = subprocess.run(
        f"{line} > /dev/full", shell=True, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert full.returncode == 3
    assert full.stderr == "Error: the output cannot be written: No space left on device\n"
    closed = subprocess.run(
        f"{line} >&-", shell=True, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert "Traceback" not in closed.stderr


def test_a_prefix_that_cannot_be_is_said(run: Run) -> None:
    ran = run("stats", "--prefix", "a/b")
    assert ran.code == 2 and "'a/b'" in ran.errors


def test_help_lists_every_command_in_one_line_and_whole() -> None:
    ran = run_command("--help")
    assert max(map(len, ran.output.splitlines())) <= 80
    assert ran.output.count("...") == 1  # of the usage
    for section in SUBCOMMANDS.values():
        for name, one in section.items():
            assert re.search(rf"^  {name} +{re.escape(one.about)}$", ran.output, re.M)


def test_every_command_is_where_the_list_says() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None and command.name == name
    assert cli.get_command(context, "no-such-command") is None


def without_click(*arguments: str) -> subprocess.CompletedProcess[str]:
    source = "import sys; sys.modules['click'] = None\nfrom asgi_ipc.command import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [("list",), ("stats", "--help"), ("no-such-command",)])
def test_without_the_extra_one_line_says_what_to_install(arguments: tuple[str, ...]) -> None:
    ran = without_click(*arguments)
    assert ran.returncode == 3 and not ran.stdout
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Error: ") and "pip install 'asgi_ipc[cli]'" in line


def test_without_the_extra_help_and_version_work() -> None:
    version = without_click("--version")
    assert (version.returncode, version.stdout) == (0, run_command("--version").output)
    for arguments in ((), ("-h",), ("--help",)):
        ran = without_click(*arguments)
        assert ran.returncode == 0 and "pip install 'asgi_ipc[cli]'" in ran.stdout.splitlines()[-1]
        assert all(f"\n  {name} " in ran.stdout for name in COMMANDS)
        assert max(map(len, ran.stdout.splitlines())) <= 80


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
