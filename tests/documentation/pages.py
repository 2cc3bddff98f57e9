"""The pages of the documentation, followed as a reader would follow them.

A page is taken apart into its code blocks. ``Reader.follow`` goes through them in their order: a
block with a caption is a file, and is written; a block of the kind ``console`` holds commands, and
they are run. What is changed on the way is only the prefix, so that a test keeps to itself, and
port numbers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from tests import environments, processes

DOCS = environments.REPOSITORY / "docs"
README = environments.REPOSITORY / "README.rst"
# In the README, which is also read where captions are not known, a file's name is the block's name.
BLOCK = re.compile(
    r"^(?P<indent> *)\.\. code-block:: (?P<kind>\S+)\n"
    r"(?P<options>(?:(?P=indent) +:\w+:.*\n)*)\n+"
    r"(?P<text>(?:(?:(?P=indent) +.*)?\n)+)",
    re.MULTILINE,
)
APPEND = " (at the end)"


class Block(NamedTuple):
    """A code block: its kind, its file ("" if it is none), and its text."""

    kind: str
    file: str
    text: str

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command of a console block, with the output that stands below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip():
                found[-1][1].append(line)
        return found


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in their order."""
    source = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(source + "\n"):
        named = re.search(r":(?:caption|name): (.*)", match["options"])
        text = textwrap.dedent(match["text"]).strip() + "\n"
        found.append(Block(match["kind"], named[1].strip() if named else "", text))
    assert len(found) == len(re.findall(r"^ *\.\. code-block::", source, re.MULTILINE)), page
    return found


class Reader:
    """Somebody who follows a page, in a folder that is empty at first."""

    def __init__(self, folder: Path, prefix: str, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.servers: dict[str, processes.Process] = {}
        self._stack = stack
        self._ports = {port: str(processes.free_port()) for port in ("8001", "8002")}
        self._prefix = prefix
        self._numbers = itertools.count()
        # What the page calls python, daphne and so on is in this environment.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._variables = environments.child_environment(
            PATH=path,
            PYTHONPATH=f"{environments.REPOSITORY}:{folder}",
            PYTHONUNBUFFERED="1",
            PYTHONDONTWRITEBYTECODE="1",
        )

    def port(self, written: str = "8001") -> int:
        """The port that is used for one on the page."""
        return int(self._ports[written])

    def adapt(self, text: str) -> str:
        """What stands on the page, with this reader's own prefix and ports."""
        text = re.sub(r"""(prefix"?[=:] ?"|destroy\(')\w+(["'])""", rf"\1{self._prefix}\2", text)
        return re.sub(r"\b800[12]\b", lambda port: self._ports[port[0]], text)

    def follow(
        self,
        page: Path,
        *,
        servers: Collection[str] = (),
        instead: dict[str, Callable[[], object]] | None = None,
    ) -> None:
        """Go through all blocks. ``servers`` are the commands that go on running; what stands in
        ``instead`` is done instead of a command."""
        instead = dict(instead or {})
        servers = set(servers)
        for block in blocks(page):
            if block.file:
                self.write(block)
                continue
            assert block.kind == "console", f"{page}: neither a file nor commands:\n{block.text}"
            for command, output in block.commands():
                if command in instead:
                    instead.pop(command)()
                elif command.startswith("pip install "):
                    assert_installed(command)
                elif command in servers:
                    servers.remove(command)
                    self.start(command)
                else:
                    assert_says(self.run(command), output)
        assert not instead and not servers, f"{page} has no more: {[*instead, *servers]}"

    def write(self, block: Block) -> Path:
        path = self.folder / block.file.removesuffix(APPEND)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if block.file.endswith(APPEND) else "w", encoding="utf-8") as file:
            file.write(self.adapt(block.text))
        return path

    def run(self, command: str) -> str:
        """Run a command to its end, which must be a good one; its output."""
        return self.start(command).wait()

    def start(self, command: str) -> processes.Process:
        """Start a command that goes on. If there is a port in it, wait for that to answer."""
        arguments = shlex.split(self.adapt(command))
        process = self._stack.enter_context(
            processes.running(
                arguments,
                log=self.folder.parent / f"{next(self._numbers)}.log",
                environment=self._variables,
                folder=self.folder,
            )
        )
        self.servers[command] = process
        for written, port in self._ports.items():
            if re.search(rf"\b{written}\b", command):
                process.wait_for_port(int(port))
        return process


@contextlib.contextmanager
def reader(tmp_path: Path, prefix: str) -> Iterator[Reader]:
    """Whatever the reader has started ends with the block."""
    folder = tmp_path / "followed"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        yield Reader(folder, prefix, stack)


def assert_says(output: str, wanted: list[str]) -> None:
    """``wanted`` are lines of the output, in this order; ``...`` stands for any number of them."""
    rest = iter(output.splitlines())
    for line in wanted:
        if line != "...":
            assert line in rest, f"no line {line!r} in:\n{output}"


def assert_installed(command: str) -> None:
    """What a ``pip install`` asks for can be had: it is installed here, with its extras. The
    checkout of this project is named by its path."""
    for written in shlex.split(command)[2:]:
        requirement = Requirement(re.sub(r"^(\.\./asgi_ipc|\.)(?=\[|$)", "asgi_ipc", written))
        metadata = importlib.metadata.metadata(requirement.name)
        assert requirement.specifier.contains(metadata["Version"]), written
        assert requirement.extras <= set(metadata.get_all("Provides-Extra", [])), written
