"""WSGI over a channel layer: a WSGI server in front, workers in other processes behind it.

- `WsgiToAsgiAdapter` is the application that the server runs (gunicorn, waitress or any other).
- `AsgiToWsgiWorker` runs a WSGI application (Flask, Django or any other) in a worker process.
- ``python -m asgi_ipc.wsgi module:app`` starts such a worker, and so does `serve`.

They use the HTTP message format of Channels 1. So the adapter also works with the workers of
Channels 1, and the worker with daphne 1. Nothing here may depend on a server or a framework.
"""

from .adapter import WsgiToAsgiAdapter
from .command import serve
from .worker import AsgiToWsgiWorker

__all__ = ["AsgiToWsgiWorker", "WsgiToAsgiAdapter", "serve"]
