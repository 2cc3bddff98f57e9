"""Server-sent events for any number of processes: uvicorn starlette_sse:app --workers 4"""

import json
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.errors import SegmentVanished

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


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(events(), media_type="text/event-stream")


async def publish(request: Request) -> Response:
    event = await request.json()
    try:
        await layer.group_send("news", event)
    except SegmentVanished:  # the memory was removed; the next call creates new memory
        return Response(status_code=503)
    return Response(status_code=202)


app = Starlette(
    routes=[
        Route("/news", stream, methods=["GET"]),
        Route("/news", publish, methods=["POST"]),
    ]
)
