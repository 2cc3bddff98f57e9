"""A script that tells everybody who is connected: python announce.py We close in five minutes."""

import os
import sys

from asgi_ipc import IPCChannelLayer

layer = IPCChannelLayer(prefix=os.environ.get("CHAT_PREFIX", "chatsite"))
layer.send_group("lobby", {"type": "chat.message", "text": " ".join(sys.argv[1:])})
