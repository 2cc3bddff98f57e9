"""Headless Chromium (Debian: ``apt-get install chromium``), driven through its own protocol:
https://chromedevtools.github.io/devtools-protocol.

Must not need pytest: docs/take_screenshot.py uses it too.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests import processes
from tests.waiting import LIVENESS, eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless", "--remote-debugging-port=0", "--no-first-run", "--hide-scrollbars"),
    *("--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--mute-audio"),
    # So that a page may look into its frames, wherever they come from.
    *("--disable-web-security", "--disable-site-isolation-trials"),
)

Browse = Callable[[str], Awaitable["Page"]]


class Refused(Exception):
    """The browser answered a command with an error."""


class Page:
    """The page of a browser. An element is named by a selector of CSS, and by a text that it
    contains; `inside` is the window that it is in, as an expression of JavaScript."""

    def __init__(self, connection: Any) -> None:
        self.errors: list[str] = []  # of the scripts of the page
        self._connection = connection
        self._numbers = itertools.count(1)

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command to the browser."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        await self._connection.send(json.dumps(asked))
        while True:
            said = json.loads(await self._connection.recv())
            if said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"]["exception"]["description"])
            if said.get("id") == number:
                if "error" in said:
                    raise Refused(f"{method}: {said['error']['message']}")
                result: dict[str, Any] = said["result"]
                return result

    async def run(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        found = await self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    async def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""

        async def is_true() -> bool:
            try:
                return bool(await self.run(f"Boolean({script})"))
            except Refused:  # it is just going to another address
                return False

        await eventually(is_true, what=script)

    async def go_to(self, address: str) -> None:
        await self.ask("Page.navigate", url=address)
        await self.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def write(self, text: str) -> None:
        """Show this text of HTML instead."""
        frame = (await self.ask("Page.getFrameTree"))["frameTree"]["frame"]["id"]
        await self.ask("Page.setDocumentContent", frameId=frame, html=text)

    async def shows(self, selector: str, *texts: str, inside: str = "window") -> None:
        """Wait until there are just so many elements, with these texts."""
        every = f"[...{inside}.document.querySelectorAll({json.dumps(selector)})]"
        shown = f"JSON.stringify({every}.map((one) => one.textContent.trim()))"
        await self.wait_for(f"{shown} === JSON.stringify({json.dumps(texts)})")

    async def contains(self, selector: str, text: str, inside: str = "window") -> None:
        """Wait until there is such an element."""
        await self.wait_for(_one(selector, text, inside))

    async def click(self, selector: str, text: str = "", inside: str = "window") -> None:
        """Click on it, once it can be seen and clicked."""
        found = _one(selector, text, inside)
        await self.wait_for(f"{found}?.checkVisibility() && !{found}.disabled")
        await self.run(f"{found}.click()")

    async def fill(self, selector: str, text: str, inside: str = "window") -> None:
        """Type into a field, in place of what is there."""
        found = _one(selector, "", inside)
        await self.wait_for(f"{found}?.checkVisibility()")
        await self.run(f"({found}.focus(), {found}.select())")
        await self.ask("Input.insertText", text=text)

    async def take_picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.ask("Page.captureScreenshot"))["data"]))


def _one(selector: str, text: str, inside: str) -> str:
    every = f"[...{inside}.document.querySelectorAll({json.dumps(selector)})]"
    return f"{every}.find((one) => one.textContent.includes({json.dumps(text)}))"


@asynccontextmanager
async def browsing() -> AsyncIterator[Browse]:
    """Start another browser for each address, and return its page.

    An error of a page's script raises AssertionError in the end.
    """
    from websockets.asyncio.client import connect

    pages: list[Page] = []
    async with AsyncExitStack() as stack:

        async def browse(address: str) -> Page:
            folder = Path(tempfile.mkdtemp(prefix="browser-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            assert CHROMIUM is not None
            # Chromium has no sandbox for root.
            options = [*OPTIONS, *(["--no-sandbox"] if os.getuid() == 0 else [])]
            command = [CHROMIUM, *options, f"--user-data-dir={folder}"]
            browser = stack.enter_context(processes.running(command, log=folder / "log"))
            browser.wait_for_output("/devtools/browser/")
            (port,) = re.findall(r"ws://.+:(\d+)/devtools/browser/", browser.output())
            connection = connect(_new_page(int(port)), proxy=None, max_size=None)
            page = Page(await stack.enter_async_context(connection))
            await page.ask("Runtime.enable")
            await page.go_to(address)
            pages.append(page)
            return page

        yield browse
        for page in pages:
            await page.run("0")  # what it has said before was heard now
    errors = [error for page in pages for error in page.errors]
    assert errors == [], errors


def _new_page(port: int) -> str:
    """Open a page in the browser that listens on a port: the address of its WebSocket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIVENESS)
    connection.request("PUT", "/json/new?about:blank")
    address: str = json.load(connection.getresponse())["webSocketDebuggerUrl"]
    connection.close()
    return address


@asynccontextmanager
async def running() -> AsyncIterator[Browse]:
    """The same for tests, which skip where there is no Chromium."""
    if CHROMIUM is None:
        import pytest

        pytest.skip("lacking: chromium (on Debian: apt-get install chromium)")
    async with browsing() as browse:
        yield browse
