"""README.rst does what it says: its Python examples are run as they stand there.

Each example bears the name of its file. It is written to a file of that name, with one change: the
prefix is that of the test. An example that no test names fails the run, as does one that could not
be found any more.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from tests import environments, processes
from tests.documentation import pages
from tests.waiting import until

README = pages.README.read_text(encoding="utf-8")
PREFIX = '"mysite"'  # in every example that makes a layer

Run = Callable[..., Any]

EXAMPLES = {block.file: block.text for block in pages.blocks(pages.README)}

NAMES = {
    "mysite/settings.py",
    "mysite/consumers.py",
    "listen.py",
    "publish.py",
    "worker.py",
}

# Another process of the site that says something to all.
ANNOUNCE = """
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

event = {"type": "chat.message", "text": "The site closes in five minutes."}
async_to_sync(get_channel_layer().group_send)("lobby", event)
"""

# What a browser would see of mysite: it says something, and it hears itself and the announcement.
BROWSER = """
import asyncio, os, subprocess, sys

os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
from asgiref.testing import ApplicationCommunicator
from mysite.consumers import ChatConsumer

async def main():
    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}
    browser = ApplicationCommunicator(ChatConsumer.as_asgi(), scope)
    await browser.send_input({"type": "websocket.connect"})
    assert (await browser.receive_output(60))["type"] == "websocket.accept"
    await browser.send_input({"type": "websocket.receive", "text": '{"text": "hello"}'})
    print((await browser.receive_output(60))["text"])
    announcing = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import django; django.setup(); import announce"
    )
    print((await browser.receive_output(60))["text"])
    assert await announcing.wait() == 0
    await browser.send_input({"type": "websocket.disconnect", "code": 1000})
    await browser.wait(60)

asyncio.run(main())
"""


@pytest.fixture
def example(prefix: str, tmp_path: Path) -> Callable[[str], Path]:
    """Writes an example to a file, as it stands in the README but for the prefix."""

    def write(name: str) -> Path:
        code = EXAMPLES[name]
        if "IPCChannelLayer" in code:
            assert PREFIX in code, f"{name} would use the prefix of somebody else"
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code.replace(PREFIX, f'"{prefix}"'), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str | Path) -> Any:
        return processes.running(
            [sys.executable, "-u", *arguments],
            log=tmp_path / f"{Path(arguments[-1]).stem}.log",
            environment=environments.child_environment(
                PYTHONPATH=f"{environments.REPOSITORY}:{tmp_path}"
            ),
            folder=tmp_path,
        )

    return run


def layer_of(settings: Path) -> Any:
    """The layer that Channels would make of these settings."""
    names: dict[str, Any] = {}
    exec(compile(settings.read_text(encoding="utf-8"), settings, "exec"), names)
    described = names["CHANNEL_LAYERS"]["default"]
    module, _, name = described["BACKEND"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**described["CONFIG"])


def test_every_example_is_tested() -> None:
    assert README.count(".. code-block::") == README.count(":name: ") == len(EXAMPLES)
    assert EXAMPLES.keys() == NAMES


async def test_settings_of_channels_4(example: Callable[[str], Path], prefix: str) -> None:
    layer = layer_of(example("mysite/settings.py"))
    assert layer.prefix == prefix
    await layer.send("a-channel", {"text": "hello"})
    assert await layer.receive("a-channel") == {"text": "hello"}
    await layer.close()


def test_the_consumer_and_the_announcement(
    example: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("channels", reason="lacking: Channels 4")
    settings = example("mysite/settings.py")
    with settings.open("a", encoding="utf-8") as file:
        file.write('SECRET_KEY = "not one"\nINSTALLED_APPS = ["channels"]\n')
    example("mysite/consumers.py")
    (tmp_path / "announce.py").write_text(ANNOUNCE, encoding="utf-8")
    (tmp_path / "browser.py").write_text(BROWSER, encoding="utf-8")
    with run(tmp_path / "browser.py") as browser:
        heard = browser.wait().splitlines()
    assert heard == ['{"text": "hello"}', '{"text": "The site closes in five minutes."}']


def test_the_programs_without_django(example: Callable[[str], Path], run: Run, prefix: str) -> None:
    with run(example("listen.py")) as listening, run(example("worker.py")) as worker:
        with asgi_ipc.IPCChannelLayer(prefix=prefix) as layer:
            until(lambda: layer.group_channels("lobby"), what="somebody to listen")
        with run(example("publish.py")) as publishing:
            publishing.wait()
        listening.wait_for_output("The site closes in five minutes.")
        worker.wait_for_output("photo 17")


def test_commands_and_links_lead_somewhere() -> None:
    makefile = (environments.REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\w+)", README, re.M)
    assert targets and all(f"\n{target}:" in makefile for target in targets)
    links = re.findall(r"`[^`]* <([^>`]+)>`_", README)
    assert links
    for path in links:
        assert (environments.REPOSITORY / path).exists(), path


def test_what_it_says_to_install_is_there_to_install() -> None:
    commands = re.findall(r"^    (pip install .*?)(?: +#.*)?$", README, re.M)
    assert len(commands) == 2
    for command in commands:
        pages.assert_installed(command)
