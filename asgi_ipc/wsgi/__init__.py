"""WSGI over a channel layer: a WSGI server in front, workers in other processes behind.

- `WsgiToAsgiAdapter` is what the server runs (gunicorn, waitress, any other);
- `AsgiToWsgiWorker` runs a WSGI application (Flask, Django, any other) in a worker process;
- ``python -m asgi_ipc.wsgi module:app`` starts such a worker, and so does `serve`.

They speak the HTTP message format of Channels 1, so that either may be used with another peer:
the adapter with the workers of Channels 1, the worker with daphne 1.
"""

from .adapter import WsgiToAsgiAdapter
from .command import serve
from .worker import AsgiToWsgiWorker

__all__ = ["AsgiToWsgiWorker", "WsgiToAsgiAdapter", "serve"]
