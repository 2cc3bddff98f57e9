"""A layer within this process whose segment the tests of the inspection look at, and damage."""

from __future__ import annotations

from asgi_ipc.inspection.view import View
from asgi_ipc.store.store import Store
from asgi_ipc.testing.sync import InProcessChannelLayer


class Inspected:
    """A layer in anonymous memory, the store in it, and a view of it."""

    def __init__(self, prefix: str) -> None:
        self.layer = InProcessChannelLayer(prefix, message_memory=8 << 20)
        attachment = self.layer._core.attach().attachment
        self.store: Store = attachment.store
        self.process: int = attachment.process
        self.view = View(prefix, attachment)

    def row(self, channel: str) -> int:
        """The reference of a channel's row."""
        return self.store.queues.find(channel.encode())
