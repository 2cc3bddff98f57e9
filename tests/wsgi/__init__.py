"""The WSGI adapter and worker: alone, together, and between real servers and frameworks."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

Application = Callable[..., Any]


class Response(NamedTuple):
    status: str
    headers: list[tuple[str, str]]
    content: bytes

    def header(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]


def environ_for(method: str = "GET", body: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """Return the environ of a request, with `changes`."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update(REQUEST_METHOD=method, PATH_INFO="/", QUERY_STRING="")
    environ["wsgi.input"] = io.BytesIO(body or b"")
    if body is not None:
        environ["CONTENT_LENGTH"] = str(len(body))
    return {**environ, **changes}


@contextmanager
def answer(
    application: Application, environ: dict[str, Any]
) -> Iterator[tuple[list[Any], Iterator[bytes]]]:
    """Ask as a validating server: yields (status and headers, once they are there; the blocks)."""
    started: list[Any] = []

    def start_response(status: str, headers: list[Any], exc_info: Any = None) -> Any:
        started[:] = [status, headers]
        return lambda content: None

    blocks = validator(application)(environ, start_response)
    try:
        yield started, iter(blocks)
    finally:
        blocks.close()


def ask(application: Application, environ: dict[str, Any]) -> Response:
    """Return the whole response to a request, checked by wsgiref.validate."""
    with answer(application, environ) as (started, blocks):
        content = b"".join(blocks)
    return Response(*started, content)
