"""asgi_ipc for asyncio: the channel layers for Channels 4 and for plain asyncio programs."""

from .layer import IPCChannelLayer
from .local_and_remote import LocalAndRemoteChannelLayer

__all__ = ["IPCChannelLayer", "LocalAndRemoteChannelLayer"]
