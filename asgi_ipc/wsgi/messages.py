"""The HTTP messages of Channels 1, made from a WSGI environ and turned into one. No I/O.

The keys are those of the Channels 1 message format. These are ours besides, for workers that know
them; others leave them alone:

- ``deadline`` of a request: when its sender stops waiting, in seconds of the machine's monotonic
  clock. A worker that comes to it later lets it be.
- ``flow_channel`` and ``flow_window`` of a request, ``flow_control`` (True) of a response: how a
  response is streamed to a client that may be slow. The worker is at most ``flow_window`` bytes, as
  `weight` counts them, ahead of what was taken. On ``flow_channel`` it is told how many were:
  ``taken``; or that nobody wants the rest: ``closed``.
- ``order`` of the messages of a response and of a body: counts from 0, so that a loss is noticed.
- ``aborted`` (True) of a response chunk: the application failed, the response is incomplete.
"""

from __future__ import annotations

import http
import sys
from collections.abc import Iterable
from typing import Any

BODY_CHUNK = 64 << 10  # bytes of the body of a request in one message: many requests may wait
CONTENT_CHUNK = 256 << 10  # bytes of a response in one message
REQUESTS = "http.request"
DISCONNECTS = "http.disconnect"

# PEP 3333: an application must not set these, and they mean nothing past one connection.
HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
    *(b"trailer", b"trailers", b"transfer-encoding", b"upgrade"),
}

_PORTS = {"http": "80", "https": "443"}


def request_of(environ: dict[str, Any]) -> dict[str, Any]:
    """The ``http.request`` message for a WSGI environ, without body, channels and deadline."""
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


def environ_of(message: dict[str, Any]) -> dict[str, Any]:
    """The part of a WSGI environ that stands in an ``http.request`` message (PEP 3333).

    Headers that came several times are joined, as by every WSGI server.
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
            # The body was taken out of it; and X_A must not pass for X-A, which a proxy may check.
            continue
        key = name.decode("latin-1").upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        text = value.decode("latin-1")
        if key in environ:
            text = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + text
        environ[key] = text
    return environ


def response_of(status: str, headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The first keys of a response, for what an application gave to start_response."""
    return {
        "status": int(status[:3]),
        "headers": [[_bytes(name).lower(), _bytes(value)] for name, value in headers],
    }


def start_of(message: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """What to give to start_response for the first message of a response."""
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


def weight(message: dict[str, Any], window: int) -> int:
    """What a message of a response counts against a window of bytes: its content, and never less
    than a 16th of the window, so that the number of messages has a bound too."""
    return max(len(message.get("content") or b""), window // 16)


def has_no_body(method: str, status: int) -> bool:
    """Whether a response must not have a body, whatever the application sends (RFC 9110, 6.4.1)."""
    return method == "HEAD" or status in (204, 304) or 100 <= status < 200


def _request_headers(environ: dict[str, Any]) -> list[list[bytes]]:
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


def _address(host: Any, port: Any) -> list[Any] | None:
    """[host, port], or None where there is none: a server on a Unix socket has no port."""
    if not host or not str(port).isdecimal():
        return None
    return [host, int(port)]


def _bytes(value: str) -> bytes:
    """PEP 3333: a str of the environ, or of start_response, stands for bytes."""
    return value.encode("latin-1")


def _text(value: str) -> str:
    """The path of a request as the message has it; bytes that are not UTF-8 are replaced."""
    return _bytes(value).decode("utf-8", "replace")


def _native(value: str) -> str:
    """And back, as the environ has it."""
    return value.encode("utf-8").decode("latin-1")
