"""Draws docs/asgi-ipc.1, the man page of the command, from what its subcommands say of themselves.

    python docs/draw_man_page.py            writes the page
    python docs/draw_man_page.py --check    says whether it is up to date

Needs the extra ``cli``.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "asgi-ipc.1"
sys.path.insert(0, str(ROOT))

import asgi_ipc  # noqa: E402
from asgi_ipc.command.cli import cli  # noqa: E402
from asgi_ipc.command.subcommands import ABOUT, SUBCOMMANDS  # noqa: E402

EXIT_STATUS = (
    (0, "success"),
    (1, "the answer is no: something is wrong (verify, doctor, bench), or no message came"),
    (2, "wrong usage, or an invalid message or name"),
    (3, "no layer has this prefix, it cannot be opened from here, or a package is not installed"),
    (4, "not now: a channel or the memory is full, the lock is busy, or processes are attached"),
    (130, "Ctrl-C"),
)
ENVIRONMENT = (
    ("ASGI_IPC_PREFIX", "The prefix of the layer, where --prefix is not given."),
    ("COLUMNS", "The width of the terminal, if it is not what the terminal says."),
)
COMPLETION = (
    ("bash", 'eval "$(_ASGI_IPC_COMPLETE=bash_source asgi-ipc)"', "~/.bashrc"),
    ("zsh", 'eval "$(_ASGI_IPC_COMPLETE=zsh_source asgi-ipc)"', "~/.zshrc"),
    (
        "fish",
        "_ASGI_IPC_COMPLETE=fish_source asgi-ipc | source",
        "~/.config/fish/completions/asgi-ipc.fish",
    ),
)


def escaped(text: str) -> str:
    """Text as roff takes it."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in text.splitlines())


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring."""
    return [" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n")]


def described(name: str, command: click.Command) -> list[str]:
    """A subcommand: how to call it, what it does, its options."""
    with click.Context(command, info_name=name) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        records = [
            record
            for parameter in command.params
            if isinstance(parameter, click.Option)
            and (record := parameter.get_help_record(context)) is not None
        ]
    lines = [f'.SS "asgi\\-ipc {escaped(name)} {escaped(usage)}"']
    first, *others = paragraphs(command.help or "")
    lines.append(escaped(first))
    for paragraph in others:
        lines += [".PP", escaped(paragraph)]
    for option, text in records:
        lines += [".TP", f".B {escaped(option)}", escaped(text)]
    return lines


def page() -> str:
    """The whole man page."""
    about = paragraphs(ABOUT)
    lines = [
        '.\\" Drawn by docs/draw_man_page.py. Change the docstrings of asgi_ipc/command instead.',
        f'.TH ASGI\\-IPC 1 "" "asgi_ipc {asgi_ipc.__version__}" "User Commands"',
        ".SH NAME",
        "asgi\\-ipc \\- look into channel layers in shared memory, and operate them",
        ".SH SYNOPSIS",
        ".B asgi\\-ipc",
        ".I COMMAND",
        "[\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
    ]
    for paragraph in about:
        lines += [escaped(paragraph), ".PP"]
    lines += [
        "In a terminal, tables are made to fit: names are cut in their middle, and columns are",
        "left out, unless \\fB\\-\\-wide\\fR is given. A pipe or a file gets all.",
    ]
    context = click.Context(cli)
    for title, section in SUBCOMMANDS.items():
        lines.append(f".SH {escaped(title).upper()}")
        for name in section:
            command = cli.get_command(context, name)
            assert command is not None
            lines += described(name, command)
    lines.append(".SH EXIT STATUS")
    for status, meaning in EXIT_STATUS:
        lines += [".TP", f".B {status}", escaped(meaning)]
    lines.append(".SH ENVIRONMENT")
    for variable, meaning in ENVIRONMENT:
        lines += [".TP", f".B {escaped(variable)}", escaped(meaning)]
    lines += [".SH COMPLETION", "To complete commands, options, prefixes, channels and groups:"]
    for shell, code, file in COMPLETION:
        lines += [".TP", f'.BR {shell} ", in " {escaped(file)}', f"\\f(CR{escaped(code)}\\fR"]
    lines += [".SH SEE ALSO", "docs/command.rst of asgi_ipc, which says more of each command.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE} is not what its script draws: run python docs/draw_man_page.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
