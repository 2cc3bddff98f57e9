"""Draws docs/images/top.svg: the real screen of ``asgi-ipc top``, over a small site that runs.

    python docs/draw_top.py                              writes the picture
    python docs/draw_top.py --to FILE --prefix PREFIX    another file, another prefix

Needs the extra ``cli``. The site consists of two servers with sockets in a group, three workers of
which one cannot keep up, and a script that sends to all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "top.svg"
sys.path.insert(0, str(ROOT))

from asgi_ipc import segment  # noqa: E402
from asgi_ipc.command.screen import Top  # noqa: E402
from asgi_ipc.inspection.snapshot import Snapshot  # noqa: E402
from asgi_ipc.inspection.view import View  # noqa: E402
from asgi_ipc.segment.paths import prefixes  # noqa: E402

COLUMNS, LINES = 80, 24
SECONDS = 60  # to wait for the site before giving up

# PREFIX stands for the prefix of the layer.
SITE = {
    "server.py": """
        import asyncio
        from asgi_ipc.aio import IPCChannelLayer

        async def socket(layer):
            name = await layer.new_channel()
            await layer.group_add("lobby", name)
            while True:
                await layer.receive(name)

        async def serve():
            layer = IPCChannelLayer(PREFIX)
            await asyncio.gather(*(socket(layer) for _ in range(40)))

        asyncio.run(serve())
    """,
    "worker.py": """
        import sys, time
        from asgi_ipc import IPCChannelLayer

        layer = IPCChannelLayer(PREFIX)
        while True:
            channel, message = layer.receive(sys.argv[2:], block=True)
            if channel is not None:
                time.sleep(float(sys.argv[1]))
    """,
    "traffic.py": """
        import time
        from asgi_ipc import IPCChannelLayer

        layer = IPCChannelLayer(PREFIX, channel_capacity={"thumbnails": 50})
        turn = 0
        while True:
            turn += 1
            layer.send_group("lobby", {"type": "chat.message", "text": "hello"})
            for channel, every in (
                ("websocket.receive", 1), ("thumbnails", 4), ("mail", 4), ("audit.log", 11),
            ):
                if turn % every == 0:
                    try:
                        layer.send(channel, {"turn": turn, "body": "x" * 400})
                    except layer.ChannelFull:
                        pass
            time.sleep(0.004)
    """,
}
PROCESSES = [
    ["server.py"],
    ["server.py"],
    ["worker.py", "0", "websocket.receive"],
    ["worker.py", "0.02", "mail"],
    ["worker.py", "0.1", "thumbnails"],
    ["traffic.py"],
]


@contextlib.contextmanager
def site(prefix: str) -> Iterator[None]:
    """Run the processes of the site until the block ends."""
    if prefix in prefixes():
        raise SystemExit(f"a layer with prefix {prefix!r} already exists on this machine")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    started = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in SITE.items():
            code = textwrap.dedent(source).replace("PREFIX", repr(prefix))
            Path(folder, name).write_text(code, encoding="utf-8")
        try:
            for arguments in PROCESSES:
                started.append(
                    subprocess.Popen(
                        ["python", *arguments],
                        executable=sys.executable,
                        cwd=folder,
                        env=environment,
                        stderr=subprocess.DEVNULL,
                    )
                )
            yield
        finally:
            for process in started:
                process.kill()
                process.wait()
            segment.destroy(prefix)


def is_in_full_swing(prefix: str) -> bool:
    """Whether all processes are attached, and a channel is full."""
    try:
        snapshot = Snapshot(View(prefix))
    except OSError:
        return False
    fullest = max((channel.fill for channel in snapshot.channels()), default=0.0)
    return len(snapshot.attached) == len(PROCESSES) and fullest >= 1


async def picture(prefix: str) -> str:
    """The screen as SVG, after a few snapshots, so that it shows rates."""
    app = Top(prefix, interval=1.0)
    async with app.run_test(size=(COLUMNS, LINES)) as pilot:
        first = app.looks
        while app.looks < first + 3:
            await pilot.pause(0.1)
        return app.export_screenshot(title=f"asgi-ipc top --prefix {prefix}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=PICTURE)
    parser.add_argument("--prefix", default="mysite")
    asked = parser.parse_args()
    with site(asked.prefix):
        deadline = time.monotonic() + SECONDS
        while not is_in_full_swing(asked.prefix):
            if time.monotonic() > deadline:
                raise SystemExit("the site did not start in time")
            time.sleep(0.1)
        drawn = asyncio.run(picture(asked.prefix))
    asked.to.parent.mkdir(exist_ok=True)
    asked.to.write_text(drawn, encoding="utf-8")
    print(f"wrote {asked.to}")


if __name__ == "__main__":
    main()
