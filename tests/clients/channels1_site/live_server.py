"""The site's own tests, as its developer would write them: on Channels 1's live server.

That test case makes the layer in the test's process, uses it, and then forks a daphne and a worker.
"""

import asyncio
from urllib.request import urlopen

import websockets
from channels.test import ChannelLiveServerTestCase

from .content import large_content


class LiveServerTests(ChannelLiveServerTestCase):
    def get(self, path):
        with urlopen(self.live_server_url + path, timeout=60) as response:
            return response.read()

    def test_echo(self):
        for number in range(20):
            self.assertEqual(self.get(f"/echo/live{number}"), f"you said live{number}".encode())

    def test_large(self):
        self.assertEqual(self.get("/large"), large_content())

    def test_chat(self):
        asyncio.run(self.chat())

    async def chat(self):
        address = self.live_server_ws_url + "/chat/live"
        async with websockets.connect(address, proxy=None) as one:
            async with websockets.connect(address, proxy=None) as other:
                for number in range(20):
                    await one.send(str(number))
                    for socket in (one, other):
                        heard = await asyncio.wait_for(socket.recv(), 60)
                        self.assertEqual(heard, str(number))


class ThreadedWorkerTests(LiveServerTests):
    """The same with several workers in one process."""

    worker_threads = 3
