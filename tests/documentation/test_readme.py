"""README.rst does what it says: its Python examples are run as they stand there.

Each example bears the name of its file. It is written to a file of that name, with one change: the
prefix is that of the test. An example that no test names fails the run, as does one that could not
be found any more.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc.options import Options
from tests import environments, processes
from tests.documentation import pages

README = pages.README.read_text(encoding="utf-8")
PREFIX = '"mysite"'  # in every example that makes a layer

Run = Callable[..., Any]

EXAMPLES = {block.file: block.text for block in pages.blocks(pages.README)}

# The settings, and what makes a layer of them.
SETTINGS = {
    "mysite/settings.py": "asgi_ipc.aio.IPCChannelLayer",
    "mysite/settings_channels1.py": "asgi_ipc.IPCChannelLayer",
}
OTHERS = {
    "mysite/consumers.py",
    "mysite/announce.py",
    "producer.py",
    "consumer.py",
    "worker.py",
    "ask.py",
    "options.py",
}

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
        sys.executable, "-c", "import django; django.setup(); import mysite.announce"
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
    assert EXAMPLES.keys() == SETTINGS.keys() | OTHERS


def test_settings_name_the_layer_they_are_about(example: Callable[[str], Path]) -> None:
    for name, backend in SETTINGS.items():
        names: dict[str, Any] = {}
        exec(example(name).read_text(encoding="utf-8"), names)
        assert names["CHANNEL_LAYERS"]["default"]["BACKEND"] == backend


async def test_settings_of_channels_4(example: Callable[[str], Path], prefix: str) -> None:
    layer = layer_of(example("mysite/settings.py"))
    assert layer.prefix == prefix
    await layer.send("a-channel", {"text": "hello"})
    assert await layer.receive("a-channel") == {"text": "hello"}
    await layer.close()


def test_settings_of_channels_1(example: Callable[[str], Path], prefix: str) -> None:
    layer = layer_of(example("mysite/settings_channels1.py"))
    assert layer.prefix == prefix
    layer.send("a-channel", {"text": "hello"})
    assert layer.receive(["a-channel"]) == ("a-channel", {"text": "hello"})
    layer.close()


def test_the_consumer_and_the_announcement(
    example: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("channels", reason="lacking: Channels 4")
    settings = example("mysite/settings.py")
    with settings.open("a", encoding="utf-8") as file:
        file.write('SECRET_KEY = "not one"\nINSTALLED_APPS = ["channels"]\n')
    example("mysite/consumers.py")
    example("mysite/announce.py")
    (tmp_path / "browser.py").write_text(BROWSER, encoding="utf-8")
    with run(tmp_path / "browser.py") as browser:
        heard = browser.wait().splitlines()
    assert heard == ['{"text": "hello"}', '{"text": "The site closes in five minutes."}']


@pytest.mark.parametrize("first", ["producer.py", "consumer.py"])
def test_the_two_asyncio_programs_in_any_order(
    first: str, example: Callable[[str], Path], run: Run
) -> None:
    producer, consumer = example("producer.py"), example("consumer.py")
    if first == "producer.py":
        with run(producer) as sending:
            sending.wait()
        with run(consumer) as receiving:
            heard = receiving.wait()
    else:
        with run(consumer) as receiving, run(producer) as sending:
            sending.wait()
            heard = receiving.wait()
    assert heard.splitlines() == ["received 0", "received 1", "received 2"]


def test_the_worker_answers(example: Callable[[str], Path], run: Run) -> None:
    with run(example("worker.py")) as worker:
        for _ in range(2):
            with run(example("ask.py")) as asking:
                assert asking.wait().splitlines() == ["WHO IS THERE?"]
        assert worker.alive()


def test_the_options_example(example: Callable[[str], Path]) -> None:
    names: dict[str, Any] = {}
    exec(example("options.py").read_text(encoding="utf-8"), names)
    layer = names["layer"]
    for channel, capacity in (
        ("thumbnails", 1000),
        ("http.response!abc", 20),
        ("websocket.receive", 500),
        ("another", 100),
    ):
        for _ in range(capacity):
            layer.send(channel, {})
        with pytest.raises(layer.ChannelFull):
            layer.send(channel, {})
    layer.close()


def test_the_table_of_options_is_complete_and_right() -> None:
    _, _, rows, _ = re.split(
        r"^=[= ]+\n", README.partition("\nOptions\n")[2], maxsplit=3, flags=re.M
    )
    written = dict(re.findall(r"^([a-z_]+) +(\S+(?: MiB)?)", rows, re.M))

    def shown(name: str, value: Any) -> str:
        if name == "mode":
            return oct(value)
        if type(value) is int and value >= 1 << 20:
            return f"{value >> 20} MiB"
        return f'"{value}"' if isinstance(value, str) else str(value)

    assert written == {
        field.name: shown(field.name, field.default) for field in dataclasses.fields(Options)
    }


def test_commands_and_links_lead_somewhere() -> None:
    makefile = (environments.REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\w+)", README, re.M)
    assert targets and all(f"\n{target}:" in makefile for target in targets)
    modules = re.findall(r"python -m (benchmarks[\w.]*)", README)
    links = re.findall(r"`[^`]* <([^>`]+)>`_", README)
    assert modules and links
    for path in links + [module.replace(".", "/") for module in modules]:
        place = environments.REPOSITORY / path
        assert place.exists() or place.with_suffix(".py").exists(), path


def test_what_it_says_to_install_is_there_to_install() -> None:
    commands = re.findall(r"^    (pip install 'asgi_ipc.*?)(?: +#.*)?$", README, re.M)
    assert len(commands) >= 4
    for command in commands:
        pages.assert_installed(command)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"asgi_ipc\.errors\.(\w+)", README))))
def test_errors_that_it_names_exist(name: str) -> None:
    assert issubclass(getattr(asgi_ipc.errors, name), asgi_ipc.errors.IPCError)
