"""The demo as two people see it: headless Chromium twice, each on a server of its own.

Each wait is for what stands on the page, and its bound is for liveness only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import environments, processes
from tests.clients import browsers, demo
from tests.clients.browsers import Browse, Page
from tests.clients.demo import Site

for module in ("channels", "daphne"):
    pytest.importorskip(module, reason=f"lacking: {module}")


@pytest.fixture
async def browser() -> AsyncIterator[Browse]:
    async with browsers.running() as browse:
        yield browse


async def say(page: Page, text: str) -> None:
    await page.fill('[aria-label="What to say"]', text)
    await page.click("button", "Say")


async def test_two_people_on_two_servers_and_one_server_is_killed(
    site: Site, browser: Browse
) -> None:
    ada = await browser(site.page(0, "/room/lobby/?name=ada"))
    grace = await browser(site.page(1, "/room/lobby/?name=grace"))
    first, second = (str(port) for port in site.ports)
    for page in (ada, grace):
        await page.shows("#people li", f"ada{first}", f"grace{second}")

    await say(ada, "hello <b>grace</b>")
    await grace.contains("#log", "hello <b>grace</b>")
    await say(grace, "hello ada")
    await ada.contains("#log", "hello ada")
    await say(grace, "/count one two three")
    await grace.contains("#log .name", "word-count")
    assert "word-count" not in await ada.run("document.querySelector('#log').textContent")
    await ada.shows("#process-count", "3")

    os.kill(site.pid(1), signal.SIGKILL)
    await grace.contains("#log", "The server is gone")
    await grace.wait_for("document.querySelector('#text').matches(':disabled')")
    await grace.wait_for("document.querySelector('#here').dataset.asOf.startsWith('as of ')")
    await grace.wait_for("document.querySelector('#tiles').matches('.stale')")
    await ada.shows("#people li", f"ada{first}")
    await ada.contains("#log", f"grace ({second}) has left")
    await ada.shows("#process-count", "2")
    await say(ada, "alone now")
    await ada.contains("#log", "alone now")


async def test_a_server_that_is_killed_is_started_again_and_its_page_comes_back(
    prefix: str, tmp_path: Path, browser: Browse
) -> None:
    # Long enough for several tries of the page in between, of which it says nothing.
    with demo.running(prefix, tmp_path, restart_after=3) as site:
        room = await browser(site.page(1, "/room/lobby/?name=grace"))
        board = await browser(site.page(1, "/board/"))
        await room.contains("#log", "You are connected")
        await board.wait_for("document.querySelectorAll('#processes tr').length === 2")
        os.kill(site.pid(1), signal.SIGKILL)
        await board.contains("#server", "is gone. Trying again")
        await board.wait_for("document.querySelectorAll('section.card.stale').length === 4")
        for page in (room, board):
            await page.wait_for(
                "document.querySelector('#server').matches('.up') "
                "&& !document.querySelector('.stale')"
            )
        assert "is back, as process" in site.supervisor.output()
        await room.wait_for("!document.querySelector('#text').matches(':disabled')")
        said = await room.run("document.querySelector('#log').textContent")
        assert said.count("The server is gone") == 1 and said.count("You are connected") == 2
        await say(room, "here again")
        await room.contains("#log", "here again")


async def test_from_the_first_page_to_a_room_to_the_board(site: Site, browser: Browse) -> None:
    page = await browser(site.page(0, "/"))
    await page.fill('[aria-label="Your name"]', "ada")
    await page.fill('[aria-label="Room"]', "kitchen")
    await page.click("button", "Enter")
    await page.shows("#people li .name", "ada")
    other = await browser(site.page(1, "/"))
    await other.shows("#people-kitchen", "1")
    await say(page, "/count a b c d")
    await page.contains("#log", "word-count4")
    await other.click("a", "Board")
    await other.wait_for(
        "[...document.querySelectorAll('#channels tr')].some("
        "(row) => row.textContent.includes('word-count') && row.textContent.includes('100'))"
    )
    await other.wait_for("document.querySelectorAll('#processes tr').length === 3")


def test_the_picture_in_the_readme_can_be_taken_again(tmp_path: Path, prefix: str) -> None:
    if browsers.CHROMIUM is None:
        pytest.skip("lacking: chromium (on Debian: apt-get install chromium)")
    picture = tmp_path / "chat.png"
    ports = [str(processes.free_port()), str(processes.free_port())]
    script = environments.REPOSITORY / "docs" / "take_screenshot.py"
    environments.run_script(script, "--to", picture, "--ports", *ports, CHAT_PREFIX=prefix)
    assert picture.read_bytes().startswith(b"\x89PNG")
