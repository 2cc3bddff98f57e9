"""The pages of docs/howto that no other test follows: what stands on them is done here."""

from __future__ import annotations

import asyncio
import configparser
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from asgi_ipc import IPCChannelLayer, aio
from asgi_ipc.django import layer_from_url
from asgi_ipc.options import Options
from tests.documentation import pages
from tests.waiting import LIVENESS, eventually

HOWTO = pages.DOCS / "howto"


def write_files(page: Path, reader: pages.Reader) -> dict[str, Path]:
    return {block.file: reader.write(block) for block in pages.blocks(page) if block.file}


def config(settings: Path) -> dict[str, Any]:
    """What Channels would give to the layer that these settings name."""
    described: dict[str, Any] = runpy.run_path(str(settings))["CHANNEL_LAYERS"]["default"]
    assert described["BACKEND"] == "asgi_ipc.aio.IPCChannelLayer"
    return dict(described["CONFIG"])


def test_from_channels_redis(tmp_path: Path, prefix: str) -> None:
    pytest.importorskip("channels", reason="lacking: Channels 4")
    with pages.reader(tmp_path, prefix) as reader:
        reader.follow(HOWTO / "from-channels-redis.rst", servers=["python receive.py"])
        assert reader.servers["python receive.py"].wait() == "It works.\n"
        before = runpy.run_path(str(reader.folder / "settings_before.py"))
        assert "channels_redis" in before["CHANNEL_LAYERS"]["default"]["BACKEND"]


def test_channels_1(tmp_path: Path, prefix: str) -> None:
    """The settings of channels-1.rst; daphne and its workers are in tests/clients."""
    with pages.reader(tmp_path, prefix) as reader:
        [settings] = write_files(HOWTO / "channels-1.rst", reader).values()
    described = runpy.run_path(str(settings))["CHANNEL_LAYERS"]["default"]
    assert described["BACKEND"] == "asgi_ipc.IPCChannelLayer"
    layer = IPCChannelLayer(**described["CONFIG"])
    layer.send("a-channel", {"text": "hello"})
    assert layer.receive(["a-channel"]) == ("a-channel", {"text": "hello"})
    layer.close()


def test_the_environment_configures_the_layer(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = HOWTO / "environment.rst"
    source = page.read_text(encoding="utf-8")
    (url,) = re.findall(r"CHANNELS_URL='(ipc://mysite.*?)'", source)
    monkeypatch.setenv("CHANNELS_URL", url)
    with pages.reader(tmp_path, prefix) as reader:
        (settings,) = write_files(page, reader).values()
        assert config(settings) == {"prefix": "mysite", "capacity": 200}
    # Each value in the table is one that the function takes.
    table = source.partition("\n=====")[2].rpartition("\n=====")[0]
    examples = re.findall(r"``([a-z_]+=[^`]+)``", table)
    assert len(examples) >= 11
    for example in examples:
        mode = "" if example.startswith("mode") else "&mode=0660"
        found = layer_from_url(f"ipc://mysite?{example}{mode}")["CONFIG"]
        assert example.partition("=")[0] in found
    assert {example.partition("=")[0] for example in examples} < {
        field.name for field in fields(Options)
    }


# Somebody comes into the room, in a process of his own, says so and stays.
COME = """
import asyncio, presence, sys
from asgi_ipc.aio import IPCChannelLayer

async def main():
    layer = IPCChannelLayer(prefix=sys.argv[1])
    mine = await layer.new_channel()
    await presence.come(layer, "lobby", mine, "grace")
    print("came", flush=True)
    await layer.receive(mine)

asyncio.run(main())
"""


async def test_who_is_here(tmp_path: Path, prefix: str) -> None:
    with pages.reader(tmp_path, prefix) as reader:
        files = write_files(HOWTO / "presence.rst", reader)
        assert config(files["settings.py"]) == {"prefix": prefix, "expiry": 5}
        presence = runpy.run_path(str(files["presence.py"]))
        layer = aio.IPCChannelLayer(prefix=prefix, expiry=0.2)
        mine = await layer.new_channel()
        await presence["come"](layer, "lobby", mine, "ada")
        (reader.folder / "come.py").write_text(COME, encoding="utf-8")
        grace = reader.start(f"python come.py {prefix}")
        grace.wait_for_output("came")
        assert await presence["here"](layer, "lobby") == ["ada", "grace"]
        os.kill(grace.pid, signal.SIGKILL)
        grace.wait_for_end()

        async def alone() -> bool:
            return bool(await presence["here"](layer, "lobby") == ["ada"])

        await eventually(alone, what="the dead to be gone")
        await presence["go"](layer, "lobby", mine, "ada")
        assert await presence["here"](layer, "lobby") == []
        await layer.close()


async def test_units_of_systemd(tmp_path: Path, prefix: str) -> None:
    """Their command lines run the site of the page on servers, from where the units would."""
    pytest.importorskip("daphne", reason="lacking: daphne 4")
    with pages.reader(tmp_path, prefix) as reader:
        write_files(HOWTO / "servers.rst", reader)
        units = write_files(HOWTO / "systemd.rst", reader)
        assert units.keys() == {"mysite@.service", "mysite-worker.service"}
        started = []
        for unit in units.values():
            parsed = configparser.ConfigParser(interpolation=None)
            parsed.optionxform = str  # type: ignore[assignment,method-assign]
            parsed.read(unit)
            service = parsed["Service"]
            assert service["WorkingDirectory"] == "/srv/mysite"
            command = service["ExecStart"].replace("/srv/mysite/venv/bin/", "")
            instances = ("8001", "8002") if "@" in unit.name else ("",)
            started += [reader.start(command.replace("%i", port)) for port in instances]
        layer = aio.IPCChannelLayer(prefix=prefix)
        mine = await layer.new_channel()
        await layer.group_add("everybody", mine)
        await layer.send("thumbnails", {"type": "make", "picture": "cat.png"})
        answer = await asyncio.wait_for(layer.receive(mine), LIVENESS)
        assert answer["text"] == "cat.png is ready"
        await layer.close()
        assert len(started) == 3 and all(process.alive() for process in started)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="lacking: systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path, prefix: str) -> None:
    """All but the user and the folder, which are not there."""
    with pages.reader(tmp_path, prefix) as reader:
        units = write_files(HOWTO / "systemd.rst", reader)
        for name, unit in units.items():
            text = unit.read_text(encoding="utf-8")
            text = text.replace("/srv/mysite/venv/bin/", f"{Path(sys.executable).parent}/")
            unit.write_text(text.replace("/srv/mysite", str(reader.folder)), encoding="utf-8")
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", unit],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            ours = [line for line in done.stdout.splitlines() if name.split(".")[0] in line]
            assert done.returncode == 0 and not ours, done.stdout


def test_settings_for_docker(tmp_path: Path, prefix: str) -> None:
    with pages.reader(tmp_path, prefix) as reader:
        files = write_files(HOWTO / "docker.rst", reader)
        layer = IPCChannelLayer(**config(files["settings_lock_file.py"]))
        layer.send("a-channel", {})
        layer.flush()
        layer.close()
        Options.read(
            prefix, {k: v for k, v in config(files["settings.py"]).items() if k != "prefix"}
        )


# Sends until nothing more fits, then receives it all.
FILL = """
import shutil, sys
from asgi_ipc import IPCChannelLayer
from settings import CHANNEL_LAYERS

layer = IPCChannelLayer(**CHANNEL_LAYERS["default"]["CONFIG"], capacity=1000)
sent = 0
try:
    while True:
        layer.send("pictures", {"number": sent, "picture": bytes(500_000)})
        sent += 1
except layer.ChannelFull:
    pass
for number in range(sent):
    assert layer.receive(["pictures"])[1]["number"] == number
print(shutil.disk_usage("/dev/shm").total >> 20, sent)
"""


def test_the_settings_for_docker_on_64_megabytes(tmp_path: Path, prefix: str) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("lacking: root, to mount a small /dev/shm")
    with pages.reader(tmp_path, prefix) as reader:
        write_files(HOWTO / "docker.rst", reader)
        (reader.folder / "fill.py").write_text(FILL, encoding="utf-8")
        mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
        said = reader.run(f"unshare --mount sh -c '{mount} && python fill.py'").split()
        assert said[0] == "64" and int(said[1]) >= 40


def test_what_docker_is_told_about_memory_was_measured() -> None:
    """On a /dev/shm that is large enough. It is as large as the memory allows that is used."""
    mount = "mount -t tmpfs -o size=1g tmpfs /dev/shm"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], check=False).returncode:
        pytest.skip("lacking: root, to mount a /dev/shm")
    script = f"{sys.executable} {pages.DOCS / 'measure_memory.py'} --check"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} && {script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_compose_shares() -> None:
    """Docker is not run by tests: a daemon cannot be had everywhere."""
    page = pages.blocks(HOWTO / "docker.rst")
    [composed] = [yaml.safe_load(block.text) for block in page if block.file == "compose.yaml"]
    web, worker = composed["services"]["web"], composed["services"]["worker"]
    assert (web["ipc"], web["shm_size"]) == ("shareable", "256m")
    assert worker["ipc"] == worker["pid"] == "service:web"
    commands = [command for block in page if not block.file for command, _ in block.commands()]
    assert all(command.startswith("docker run ") for command in commands)
    assert "--ipc=container:web --pid=container:web" in commands[-1]
    assert composed["services"]["worker"]["command"] in commands[-1]
