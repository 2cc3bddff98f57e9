"""A WSGI application, and the adapter that gunicorn runs in front of the layer.

PREFIX, in the environment, names the layer. Workers behind it run `application`.
"""

import os
import time

from asgi_ipc import IPCChannelLayer
from asgi_ipc.wsgi import WsgiToAsgiAdapter

_MEGABYTE = bytes(1 << 20)

front = WsgiToAsgiAdapter(IPCChannelLayer(os.environ["PREFIX"]))


def application(environ, start_response):
    content = b"Hello, world!\n"
    if environ["PATH_INFO"] == "/wait":
        time.sleep(0.01)  # as for a database
    elif environ["PATH_INFO"] == "/megabyte":
        content = _MEGABYTE
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))]
    start_response("200 OK", headers)
    return [content]
