"""The demo as two people see it: headless Chromium twice, each on a server of its own.

Each wait is for what stands on the page, and its bound is for liveness only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import environments, processes
from tests.clients import browsers
from tests.clients.browsers import Browse, expect
from tests.clients.demo import Site
from tests.waiting import LIVENESS

for module in ("channels", "daphne"):
    pytest.importorskip(module, reason=f"lacking: {module}")


@pytest.fixture
async def browser() -> AsyncIterator[Browse]:
    async with browsers.running() as browse:
        yield browse


async def say(page: Any, text: str) -> None:
    await page.get_by_label("What to say").fill(text)
    await page.get_by_role("button", name="Say").click()


async def test_two_people_on_two_servers_and_one_server_is_killed(
    site: Site, browser: Browse
) -> None:
    ada = await browser(site.page(0, "/room/lobby/?name=ada"))
    grace = await browser(site.page(1, "/room/lobby/?name=grace"))
    first, second = (str(port) for port in site.ports)
    for page in (ada, grace):
        await expect(page.locator("#people li")).to_have_text([f"ada{first}", f"grace{second}"])

    await say(ada, "hello <b>grace</b>")
    await expect(grace.locator("#log")).to_contain_text("hello <b>grace</b>")
    await say(grace, "hello ada")
    await expect(ada.locator("#log")).to_contain_text("hello ada")
    await say(grace, "/count one two three")
    await expect(grace.locator("#log .name", has_text="word-count")).to_be_visible()
    await expect(ada.locator("#log .name", has_text="word-count")).to_have_count(0)
    await expect(ada.locator("#process-count")).to_have_text("3")

    os.kill(site.pid(1), signal.SIGKILL)
    await expect(grace.locator("#log")).to_contain_text("The server is gone")
    await expect(ada.locator("#people li")).to_have_text([f"ada{first}"])
    await expect(ada.locator("#log")).to_contain_text(f"grace ({second}) has left")
    await expect(ada.locator("#process-count")).to_have_text("2")
    await say(ada, "alone now")
    await expect(ada.locator("#log")).to_contain_text("alone now")


async def test_from_the_first_page_to_a_room_to_the_board(site: Site, browser: Browse) -> None:
    page = await browser(site.page(0, "/"))
    await page.get_by_label("Your name").fill("ada")
    await page.get_by_label("Room").fill("kitchen")
    await page.get_by_role("button", name="Enter").click()
    await expect(page.locator("#people li .name")).to_have_text(["ada"])
    other = await browser(site.page(1, "/"))
    await expect(other.locator("#people-kitchen")).to_have_text("1")
    await say(page, "/count a b c d")
    await expect(page.locator("#log")).to_contain_text("word-count4")
    await other.get_by_role("link", name="Board").click()
    await expect(other.locator("#channels tr", has_text="word-count")).to_contain_text("100")
    await expect(other.locator("#processes tr")).to_have_count(3)


def test_the_picture_in_the_readme_can_be_taken_again(tmp_path: Path, prefix: str) -> None:
    pytest.importorskip("playwright", reason="lacking: playwright")
    if browsers.CHROMIUM is None:
        pytest.skip("lacking: chromium (on Debian: apt-get install chromium)")
    picture = tmp_path / "chat.png"
    ports = [str(processes.free_port()), str(processes.free_port())]
    script = environments.REPOSITORY / "docs" / "take_screenshot.py"
    done = subprocess.run(
        [sys.executable, script, "--to", picture, "--ports", *ports],
        env=environments.child_environment(CHAT_PREFIX=prefix),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * LIVENESS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
