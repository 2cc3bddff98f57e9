"""Tests for ``manage.py test``. They do not disturb a ``manage.py runserver`` beside them."""

import json

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from channels.testing import ChannelsLiveServerTestCase, WebsocketCommunicator
from django.test import TestCase, TransactionTestCase, tag
from websockets.sync.client import connect

from chatsite.asgi import application


async def enter():
    browser = WebsocketCommunicator(application, "/chat")
    connected, _ = await browser.connect()
    assert connected
    return browser


class ChatTests(TestCase):
    async def test_everybody_hears_what_is_said(self):
        alice, bob = await enter(), await enter()
        await alice.send_json_to({"text": "hello"})
        for browser in (alice, bob):
            self.assertEqual(await browser.receive_json_from(), {"text": "hello"})
            await browser.disconnect()


class AnnouncementTests(TransactionTestCase):
    def test_a_view_or_command_reaches_who_is_there(self):
        async_to_sync(self.announce)()

    async def announce(self):
        alice = await enter()
        event = {"type": "chat.message", "text": "We close."}
        await get_channel_layer().group_send("lobby", event)
        self.assertEqual(await alice.receive_json_from(), {"text": "We close."})
        await alice.disconnect()


@tag("live")  # exclude these with --parallel, whose workers must not start processes
class LiveChatTests(ChannelsLiveServerTestCase):
    """A real server in another process, which shares the layer with this process."""

    def test_a_chat(self):
        address = self.live_server_ws_url + "/chat"
        with connect(address, proxy=None) as alice, connect(address, proxy=None) as bob:
            for socket in (alice, bob):
                socket.send(json.dumps({"text": "hello"}))
                for heard in (alice.recv(timeout=60), bob.recv(timeout=60)):
                    self.assertEqual(json.loads(heard), {"text": "hello"})

    def test_the_server_gets_what_the_test_sends(self):
        with connect(self.live_server_ws_url + "/chat", proxy=None) as alice:
            event = {"type": "chat.message", "text": "We close."}
            async_to_sync(get_channel_layer().group_send)("lobby", event)
            self.assertEqual(json.loads(alice.recv(timeout=60)), {"text": "We close."})
