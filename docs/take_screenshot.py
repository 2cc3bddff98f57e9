"""Takes the picture of the demo that stands in the README: docs/images/chat.png.

Runs the demo, opens a room on both of its servers in headless Chromium (Debian's, driven by
Playwright), lets two people talk, and takes a picture of both windows.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

HERE = Path(__file__).resolve().parent
SECONDS = 60  # for whatever has to appear on a page
SIZE = {"width": 1360, "height": 660}

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
WINDOW = '<div><p>{address}</p><iframe name="{name}" src="{address}"></iframe></div>'

TALK = (
    ("ada", "Is this thing on? I am on the first server."),
    ("grace", "And I am on the second. No Redis anywhere."),
    ("ada", "So who carries our words across?"),
    ("grace", "Shared memory. Let me ask the worker, that is a third process:"),
    ("grace", "/count how many words are these"),
)


def talk(page: Page, ports: list[int]) -> None:
    people = ("ada", "grace")
    windows = [
        WINDOW.format(name=name, address=f"http://127.0.0.1:{port}/room/lobby/?name={name}")
        for name, port in zip(people, ports)
    ]
    page.set_content(WINDOWS.format(windows="".join(windows)))
    frames: dict[str, Any] = {name: page.frame_locator(f"iframe[name={name}]") for name in people}
    for frame in frames.values():
        expect(frame.locator("#people li")).to_have_count(len(people))
    for name, text in TALK:
        frames[name].locator("#text").fill(text)
        frames[name].locator("#speak button").click()
        for hearer in [name] if text.startswith("/") else people:
            said = "word-count" if text.startswith("/") else text
            expect(frames[hearer].locator("#log")).to_contain_text(said)
    for frame in frames.values():
        expect(frame.locator("#process-count")).to_have_text("3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=HERE / "images" / "chat.png")
    parser.add_argument("--ports", nargs=2, type=int, default=[8001, 8002], metavar="PORT")
    given = parser.parse_args()
    to, ports = given.to, given.ports
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("There is no chromium here; on Debian: apt-get install chromium")
    expect.set_options(timeout=SECONDS * 1000)
    demo = subprocess.Popen(
        [sys.executable, HERE.parent / "demo" / "run.py", "--ports", *map(str, ports)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert demo.stdout is not None
        if not any("Ctrl-C" in line for line in demo.stdout):
            sys.exit("The demo did not start.")
        with sync_playwright() as playwright:
            # Chromium has no sandbox for root.
            arguments = ["--no-sandbox"] if os.getuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            talk(page, ports)
            to.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=to)
            browser.close()
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait()


if __name__ == "__main__":
    main()
