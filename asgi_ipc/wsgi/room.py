"""Sends as soon as there is room, and receives meanwhile. Must not know what is sent or received.

A peer that waits for room must notice at once that the other side has answered, or has gone.
"""

from __future__ import annotations

from ..aio.sending import Meanwhile
from ..aio.thread import BLOCKING, finished
from ..attachment.attachment import Inherited
from ..base_layer import Message
from ..sync import IPCChannelLayer


def send_when_room(
    layer: IPCChannelLayer, channel: str, message: Message, deadline: float, meanwhile: Meanwhile
) -> bool:
    """Send `message`, and return True; or False if `meanwhile` ended it. Raises ChannelFull at
    `deadline`, and what `send` of the layer raises."""
    while True:
        try:
            return finished(
                layer._core.send_when_room(channel, message, deadline, BLOCKING, meanwhile)
            )
        except Inherited:
            pass  # a child that was forked meanwhile attaches again
