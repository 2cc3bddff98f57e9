"""The application that the WSGI server runs."""

import os

from asgi_ipc import IPCChannelLayer
from asgi_ipc.wsgi import WsgiToAsgiAdapter

application = WsgiToAsgiAdapter(
    IPCChannelLayer(prefix=os.environ["SITE_PREFIX"]), timeout=float(os.environ["SITE_TIMEOUT"])
)
