"""The site as a Flask application."""

from __future__ import annotations

import os
import time
from typing import Any

from flask import Flask, Response, request

from .content import checksum, megabytes

application = Flask(__name__)


@application.route("/echo/<word>")
def echo(word: str) -> Any:
    text = f"you said {word} and {request.args.get('also', 'no more')}"
    response = Response(text, mimetype="text/plain")
    response.headers["X-Worker"] = str(os.getpid())
    response.set_cookie("first", "1")
    response.set_cookie("second", "2")
    return response


@application.route("/upload", methods=["POST"])
def upload() -> Any:
    return checksum(iter(lambda: request.stream.read(1 << 16), b""))


@application.route("/download/<int:number>")
def download(number: int) -> Any:
    return Response(megabytes(number), mimetype="application/octet-stream")


@application.route("/hold/<path:folder>")
def hold(folder: str) -> Any:
    """Report which process holds this request, and continue when allowed to."""
    open(f"/{folder}/{os.getpid()}", "w").close()
    while not os.path.exists(f"/{folder}/go-on"):
        time.sleep(0.01)
    return "held"


@application.route("/fail")
def fail() -> Any:
    raise RuntimeError("on purpose")
