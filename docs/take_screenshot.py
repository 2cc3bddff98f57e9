"""Takes the picture of the demo that stands in the README: docs/images/chat.png.

Runs the demo, opens a room on both of its servers in headless Chromium, lets two people talk, and
takes a picture of both windows.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.clients.browsers import CHROMIUM, Page, browsing  # noqa: E402

SIZE = {"width": 1360, "height": 660, "deviceScaleFactor": 1, "mobile": False}
LIGHT = {"name": "prefers-color-scheme", "value": "light"}

# Two windows side by side, each with the address that it shows.
WINDOWS = """
<!DOCTYPE html>
<style>
  body {{ margin: 16px; display: grid; grid-template-columns: 1fr 1fr; gap: 16px;
    background: #cfd6e2; font: 13px "DejaVu Sans", sans-serif; }}
  div {{ height: 628px; display: flex; flex-direction: column; border-radius: 8px; overflow: hidden;
    box-shadow: 0 4px 16px #0004; }}
  p {{ margin: 0; padding: 8px 14px; background: #e8ebf1; color: #57606f; }}
  iframe {{ border: 0; flex: 1; width: 100%; background: #f4f5f7; }}
</style>
{windows}
"""
WINDOW = '<div><p>{1}</p><iframe name="{0}" src="{1}"></iframe></div>'

TALK = (
    ("ada", "Is this thing on? I am on the first server."),
    ("grace", "And I am on the second. No Redis anywhere."),
    ("ada", "So who carries our words across?"),
    ("grace", "Shared memory. Let me ask the worker, that is a third process:"),
    ("grace", "/count how many words are these"),
)


async def take_picture(ports: list[int], to: Path) -> None:
    people = ("ada", "grace")
    addresses = [
        f"http://127.0.0.1:{port}/room/lobby/?name={name}" for name, port in zip(people, ports)
    ]
    async with browsing() as browse:
        page = await browse("data:text/html,")
        await page.ask("Emulation.setDeviceMetricsOverride", **SIZE)
        await page.ask("Emulation.setEmulatedMedia", features=[LIGHT])
        windows = map(WINDOW.format, people, addresses)
        await page.write(WINDOWS.format(windows="".join(windows)))
        await talk(page, people)
        to.parent.mkdir(parents=True, exist_ok=True)
        await page.take_picture(to)


async def talk(page: Page, people: tuple[str, ...]) -> None:
    for name in people:
        await page.wait_for(f"{name}.document.querySelectorAll('#people li').length === 2")
    for name, text in TALK:
        await page.fill("#text", text, inside=name)
        await page.click("#speak button", inside=name)
        for hearer in [name] if text.startswith("/") else people:
            said = "word-count" if text.startswith("/") else text
            await page.contains("#log", said, inside=hearer)
    for name in people:
        await page.shows("#process-count", "3", inside=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=HERE / "images" / "chat.png")
    parser.add_argument("--ports", nargs=2, type=int, default=[8001, 8002], metavar="PORT")
    given = parser.parse_args()
    to, ports = given.to, given.ports
    if CHROMIUM is None:
        sys.exit("There is no chromium here; on Debian: apt-get install chromium")
    demo = subprocess.Popen(
        [sys.executable, HERE.parent / "demo" / "run.py", "--ports", *map(str, ports)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert demo.stdout is not None
        if not any("Ctrl-C" in line for line in demo.stdout):
            sys.exit("The demo did not start.")
        asyncio.run(take_picture(ports, to))
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait()


if __name__ == "__main__":
    main()
