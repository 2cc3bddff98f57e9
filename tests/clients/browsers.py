"""Headless Chromium for tests: Debian's (``apt-get install chromium``), driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.waiting import LIVENESS

MILLISECONDS = LIVENESS * 1000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

Browse = Callable[[str], Awaitable[Any]]


def expect(what: Any) -> Any:
    """Playwright's ``expect``: waits until something is so, with a bound for liveness only."""
    from playwright.async_api import expect

    expect.set_options(timeout=MILLISECONDS)
    return expect(what)


@asynccontextmanager
async def running() -> AsyncIterator[Browse]:
    """Starts another browser for each address it is given, and returns its page.

    An error of a page's script fails the test. Skips where there is no Playwright or no Chromium.
    """
    pytest.importorskip("playwright", reason="lacking: playwright")
    if CHROMIUM is None:
        pytest.skip("lacking: chromium (on Debian: apt-get install chromium)")
    from playwright.async_api import async_playwright

    # Chromium has no sandbox for root.
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    errors: list[str] = []
    async with AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_playwright())

        async def browse(address: str) -> Any:
            chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
            stack.push_async_callback(chromium.close)
            page = await chromium.new_page()
            page.set_default_timeout(MILLISECONDS)
            page.on("pageerror", lambda error: errors.append(str(error)))
            await page.goto(address)
            return page

        yield browse
    assert errors == []
