"""Server-sent events from Django: uvicorn django_sse:application --workers 4"""

import json
import os
from collections.abc import AsyncIterator

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.errors import SegmentVanished

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="for the example"
)
layer = IPCChannelLayer(prefix=os.environ.get("NEWS_PREFIX", "news"))


async def events() -> AsyncIterator[str]:
    async with layer.subscribe("news") as news:
        yield ": subscribed\n\n"
        while True:
            try:
                event = await news.get(timeout=15)
            except TimeoutError:
                yield ": nothing new\n\n"  # so that no proxy closes the connection
            else:
                yield f"data: {json.dumps(event)}\n\n"


@csrf_exempt
async def news(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        try:
            await layer.group_send("news", json.loads(request.body))
        except SegmentVanished:  # the memory was removed; the next call creates new memory
            return HttpResponse(status=503)
        return HttpResponse(status=202)
    return StreamingHttpResponse(events(), content_type="text/event-stream")


urlpatterns = [path("news", news)]
application = get_asgi_application()
