"""Tests with the fixtures of asgi_ipc. They need only pytest and pytest-asyncio (or anyio)."""

import subprocess
import sys

import pytest
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator

from chatsite.asgi import application


async def test_a_layer_of_its_own(asgi_ipc_layer):
    await asgi_ipc_layer.send("thumbnails", {"photo": 7})
    assert await asgi_ipc_layer.receive("thumbnails") == {"photo": 7}


def test_a_blocking_layer_and_another_process(asgi_ipc_sync_layer):
    layer = asgi_ipc_sync_layer
    program = f"""
from asgi_ipc import IPCChannelLayer
IPCChannelLayer({layer.prefix!r}).send("thumbnails", {{"photo": 7}})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert layer.receive(["thumbnails"], block=True) == ("thumbnails", {"photo": 7})


@pytest.mark.usefixtures("asgi_ipc_isolated")
async def test_a_consumer():
    browser = WebsocketCommunicator(application, "/chat")
    await browser.connect()
    event = {"type": "chat.message", "text": "We close."}
    await get_channel_layer().group_send("lobby", event)
    assert await browser.receive_json_from() == {"text": "We close."}
    await browser.disconnect()
