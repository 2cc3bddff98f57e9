"""Converts between a WSGI environ and the HTTP messages of Channels 1. Must not do any I/O.

The keys are those of the Channels 1 message format, and these, which other peers ignore:

- ``deadline`` of a request: when its sender stops waiting, in seconds of the machine's monotonic
  clock. A worker that gets to the request later skips it.
- ``flow_channel`` and ``flow_window`` of a request, ``flow_control`` (True) of a response: they
  stream a response to a client that may be slow. The worker stays at most ``flow_window`` bytes, as
  `weight` counts them, ahead of what the client has taken. On ``flow_channel`` it learns how many
  bytes were ``taken``, or that the exchange is ``closed``.
- ``order`` of the messages of a response and of a body: counts from 0, so that a loss is noticed.
- ``aborted`` (True) of a response chunk: the application failed, and the response is incomplete.
"""

from __future__ import annotations

import http
import sys
from collections.abc import Callable, Iterable
from typing import Any

from ..base_layer import Message

# PEP 3333: what an application is, and what it is given.
Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

BODY_CHUNK = 64 << 10  # bytes of a request's body in one message: many requests may be pending
CONTENT_CHUNK = 256 << 10  # bytes of a response in one message
REQUESTS = "http.request"
DISCONNECTS = "http.disconnect"

# PEP 3333: an application must not set these; they concern only one connection.
HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
    *(b"trailer", b"trailers", b"transfer-encoding", b"upgrade"),
}

_PORTS = {"http": "80", "https": "443"}


def request_of(environ: Environ) -> Message:
    """Return the ``http.request`` message for an environ, without body, channels and deadline."""
    root = _text(environ.get("SCRIPT_NAME", ""))
    scheme = environ.get("wsgi.url_scheme", "http")
    return {
        "http_version": _version(environ.get("SERVER_PROTOCOL", "")),
        "method": environ["REQUEST_METHOD"].upper(),
        "scheme": scheme,
        "path": root + _text(environ.get("PATH_INFO", "")) or "/",
        "root_path": root,
        "query_string": _bytes(environ.get("QUERY_STRING", "")),
        "headers": _request_headers(environ),
        "client": _address(environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT", "0")),
        "server": _address(environ.get("SERVER_NAME"), environ.get("SERVER_PORT")),
    }


def environ_of(message: Message) -> Environ:
    """Return the part of a WSGI environ that an ``http.request`` message contains (PEP 3333).

    Headers that came several times are joined, as WSGI servers do it.
    """
    root = message.get("root_path") or ""
    path = message["path"]
    if root and path.startswith(root):
        path = path[len(root) :]
    scheme = message.get("scheme") or "http"
    server = message.get("server") or ["localhost", int(_PORTS.get(scheme, "80"))]
    version = message.get("http_version") or "1.1"
    environ = {
        "REQUEST_METHOD": message["method"],
        "SCRIPT_NAME": _native(root),
        "PATH_INFO": _native(path),
        "QUERY_STRING": (message.get("query_string") or b"").decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{version}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    client = message.get("client")
    if client:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client[0], str(client[1])
    for name, value in message.get("headers") or ():
        if name == b"transfer-encoding" or b"_" in name:
            # The body is decoded already. X_A must not be taken for X-A, which a proxy may check.
            continue
        key = name.decode("latin-1").upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        text = value.decode("latin-1")
        if key in environ:
            text = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + text
        environ[key] = text
    return environ


def response_of(status: str, headers: Iterable[tuple[str, str]]) -> Message:
    """Return the first keys of a response, for the arguments of start_response."""
    return {
        "status": int(status[:3]),
        "headers": [[_bytes(name).lower(), _bytes(value)] for name, value in headers],
    }


def start_of(message: Message) -> tuple[str, list[tuple[str, str]]]:
    """Return the arguments of start_response for the first message of a response."""
    status = message["status"]
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    headers = [
        (bytes(name).decode("latin-1").title(), bytes(value).decode("latin-1"))
        for name, value in message.get("headers") or ()
        if name.lower() not in HOP_BY_HOP
    ]
    return f"{status} {phrase}", headers


def weight(message: Message, window: int) -> int:
    """Return how much of a window of bytes a message of a response takes: the size of its content,
    but at least a 16th of the window, so that the number of messages is limited too."""
    return max(len(message.get("content") or b""), window // 16)


def has_no_body(method: str, status: int) -> bool:
    """Return whether a response must not have a body (RFC 9110, 6.4.1)."""
    return method == "HEAD" or status in (204, 304) or 100 <= status < 200


def _request_headers(environ: Environ) -> list[list[bytes]]:
    headers = []
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            name = key[5:]
        elif key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            name = key
        else:
            continue
        headers.append([_bytes(name.replace("_", "-")).lower(), _bytes(value)])
    return headers


def _version(protocol: str) -> str:
    version = protocol.partition("/")[2] or "1.1"
    return version[:-2] if version.endswith(".0") and version != "1.0" else version


def _address(host: object, port: Any) -> list[object] | None:
    """Return [host, port], or None if there is none: a server on a Unix socket has no port."""
    if not host or not str(port).isdecimal():
        return None
    return [host, int(port)]


def _bytes(value: str) -> bytes:
    """Return the bytes that a str of the environ, or of start_response, stands for (PEP 3333)."""
    return value.encode("latin-1")


def _text(value: str) -> str:
    """Return a path as the message has it; bytes that are not UTF-8 are replaced."""
    return _bytes(value).decode("utf-8", "replace")


def _native(value: str) -> str:
    """Return a path as the environ has it."""
    return value.encode("utf-8").decode("latin-1")
