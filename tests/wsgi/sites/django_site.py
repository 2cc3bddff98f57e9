"""The site as a Django project in one file."""

from __future__ import annotations

import os
import time
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from .content import checksum, megabytes

settings.configure(
    SECRET_KEY="not one",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],  # announces lengths
)


def echo(request: HttpRequest, word: str) -> HttpResponse:
    text = f"you said {word} and {request.GET.get('also', 'no more')}"
    response = HttpResponse(text, content_type="text/plain; charset=utf-8")
    response["X-Worker"] = str(os.getpid())
    response.set_cookie("first", "1")
    response.set_cookie("second", "2")
    return response


def upload(request: HttpRequest) -> HttpResponse:
    return HttpResponse(checksum(iter(lambda: request.read(1 << 16), b"")))


def download(request: HttpRequest, number: int) -> StreamingHttpResponse:
    return StreamingHttpResponse(megabytes(number), content_type="application/octet-stream")


def hold(request: HttpRequest, folder: str) -> HttpResponse:
    """Report which process holds this request, and continue when allowed to."""
    open(f"/{folder}/{os.getpid()}", "w").close()
    while not os.path.exists(f"/{folder}/go-on"):
        time.sleep(0.01)
    return HttpResponse("held")


def fail(request: HttpRequest) -> Any:
    raise RuntimeError("on purpose")


urlpatterns = [
    path("echo/<word>", echo),
    path("upload", upload),
    path("download/<int:number>", download),
    path("hold/<path:folder>", hold),
    path("fail", fail),
]
application = get_wsgi_application()
