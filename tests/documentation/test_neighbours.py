"""docs/howto/instead-of-multiprocessing-queue.rst, litestar.rst, scripts.rst, socketio.rst,
subscriptions.rst, tests.rst and without-redis.rst: the blocks that stand on the pages.

What these pages include from ``examples/`` is tested with the frameworks, in ``tests/frameworks``
and ``tests/testing``.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.testing.aio import InProcessChannelLayer
from tests.documentation import pages
from tests.waiting import LIVENESS

HOWTO = pages.DOCS / "howto"
SETTINGS = """
INSTALLED_APPS = ["channels"]
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.aio.IPCChannelLayer",
        "CONFIG": {"prefix": "mysite"},
    },
}
"""


def write(page: str, reader: pages.Reader) -> dict[str, Path]:
    return {b.file: reader.write(b) for b in pages.blocks(HOWTO / page) if b.file}


def test_publishing_to_litestar(tmp_path: Path, prefix: str) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    layer.group_add("litestar.news", "reader")
    with pages.reader(tmp_path, prefix) as reader:
        assert write("litestar.rst", reader).keys() == {"publish_news.py"}
        reader.run("python publish_news.py")
    _, event = layer.receive(["reader"])
    assert event is not None
    assert (event["channel"], json.loads(event["data"])) == ("news", {"text": "hello"})
    layer.close()


@pytest.mark.parametrize("script", ["say_it", "say_it_directly"])
def test_scripts_of_a_django_project(script: str, tmp_path: Path, prefix: str) -> None:
    pytest.importorskip("channels", reason="lacking: Channels 4")
    layer = IPCChannelLayer(prefix=prefix)
    layer.group_add("lobby", "reader")
    with pages.reader(tmp_path, prefix) as reader:
        written = write("scripts.rst", reader)
        assert written.keys() == {"say_it.py", "say_it_directly.py", "thumbnail_worker.py"}
        reader.write(pages.Block("python", "settings.py", SETTINGS))
        start = "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'settings'; import django"
        reader.run(f'python -c "{start}; django.setup(); import {script}"')
    event = {"type": "chat.message", "text": "We close in five minutes."}
    assert layer.receive(["reader"]) == ("reader", event)
    layer.close()


def test_a_script_that_waits_for_work(tmp_path: Path, prefix: str) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    with pages.reader(tmp_path, prefix) as reader:
        write("scripts.rst", reader)
        worker = reader.start("python thumbnail_worker.py")
        layer.send("thumbnails", {"photo": "cat.png"})
        worker.wait_for_output("photo cat.png")
    layer.close()


def test_a_test_within_one_process(tmp_path: Path, prefix: str) -> None:
    with pages.reader(tmp_path, prefix) as reader:
        written = write("tests.rst", reader)
        assert written.keys() == {"test_in_process.py", "settings_in_process.py"}
        assert "1 passed" in reader.run("python -m pytest -p no:cacheprovider test_in_process.py")
        settings = runpy.run_path(str(written["settings_in_process.py"]))
        backend = settings["CHANNEL_LAYERS"]["default"]["BACKEND"]
        assert backend == f"{InProcessChannelLayer.__module__}.{InProcessChannelLayer.__name__}"


def test_the_option_that_turns_the_isolation_off(tmp_path: Path, prefix: str) -> None:
    """An option that pytest does not know would be an error here."""
    [option] = [block for block in pages.blocks(HOWTO / "tests.rst") if block.kind == "ini"]
    with pages.reader(tmp_path, prefix) as reader:
        reader.write(pages.Block("ini", "pytest.ini", option.text))
        program = "def test(request):\n    assert not request.config.getini('asgi_ipc_isolate')\n"
        reader.write(pages.Block("python", "test_it.py", program))
        said = reader.run("python -m pytest --strict-config test_it.py")
        assert "1 passed" in said


@pytest.mark.parametrize("listener", ["listen", "listen_blocking"])
def test_a_subscription(listener: str, tmp_path: Path, prefix: str) -> None:
    with pages.reader(tmp_path, prefix) as reader:
        written = write("subscriptions.rst", reader)
        assert written.keys() == {"listen.py", "listen_blocking.py", "publish.py"}
        listening = reader.start(f"python {listener}.py")
        listening.wait_for_output("listening")
        reader.run("python publish.py")
        listening.wait_for_output("It works.")


@pytest.mark.parametrize(
    "command",
    ["uvicorn chat:app --port 8001", "python flask_chat.py 8001"],
    ids=["asyncio", "Flask"],
)
async def test_socketio(command: str, tmp_path: Path, prefix: str) -> None:
    for module in ("aiohttp", "flask_socketio", "uvicorn"):
        pytest.importorskip(module, reason=f"lacking: {module}")
    socketio = pytest.importorskip("socketio", reason="lacking: python-socketio")
    with pages.reader(tmp_path, prefix) as reader:
        written = write("socketio.rst", reader)
        assert written.keys() == {"chat.py", "flask_chat.py", "announce.py"}
        reader.start(command)
        async with socketio.AsyncSimpleClient(reconnection=False) as client:
            await client.connect(f"http://127.0.0.1:{reader.port()}", wait_timeout=LIVENESS)
            await client.emit("say", "hello")
            assert await client.receive(timeout=LIVENESS) == ["said", "hello"]
            reader.run("python announce.py")
            said = await client.receive(timeout=LIVENESS)
            assert said == ["said", "We close in five minutes."]


def test_instead_of_multiprocessing_queue(tmp_path: Path, prefix: str) -> None:
    with pages.reader(tmp_path, prefix) as reader:
        reader.follow(HOWTO / "instead-of-multiprocessing-queue.rst")


def test_a_django_site_without_redis(tmp_path: Path, prefix: str) -> None:
    pytest.importorskip("channels", reason="lacking: Channels 4")
    with pages.reader(tmp_path, prefix) as reader:
        reader.follow(HOWTO / "without-redis.rst", servers=["python worker.py"])
        worker = reader.servers["python worker.py"]
        worker.wait_for_output("working on a thumbnail")
        # Wakes it long before it looks by itself, after a minute.
        assert "False, False, False, False, False" in reader.run("python try_it.py")
        worker.wait_until(lambda: worker.output().count("working on") == 2, "a second task")
        look = (
            "import django; django.setup();"
            "from django.core.cache import caches; from django.contrib.sessions.models import "
            "Session; from work.models import Task;"
            "print(caches['default'].get('greeting'), caches['own'].get('greeting'),"
            "Session.objects.count(), Task.objects.filter(done=True).count())"
        )
        reader.write(pages.Block("python", "look.py", look + "\n"))
        said = reader.run("env DJANGO_SETTINGS_MODULE=settings python look.py")
        assert said.split() == ["hello", "None", "2", "2"]
