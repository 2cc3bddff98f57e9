"""asgi_ipc for asyncio: the channel layer for Channels 4 and for plain asyncio programs."""

from .layer import IPCChannelLayer

__all__ = ["IPCChannelLayer"]
