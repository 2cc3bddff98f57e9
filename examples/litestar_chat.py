"""A chat for any number of processes: uvicorn litestar_chat:app --workers 4"""

import os

from litestar import Litestar, post
from litestar.channels import ChannelsPlugin

from asgi_ipc.litestar import IPCChannelsBackend


@post("/rooms/{room:str}", status_code=202)
async def say(room: str, data: dict[str, str], channels: ChannelsPlugin) -> None:
    await channels.wait_published(data, room)


backend = IPCChannelsBackend(prefix=os.environ.get("CHAT_PREFIX", "chat"))
plugin = ChannelsPlugin(
    backend=backend,
    arbitrary_channels_allowed=True,
    create_ws_route_handlers=True,  # a WebSocket at /rooms/NAME gets what is said in NAME
    ws_handler_base_path="/rooms",
)
app = Litestar([say], plugins=[plugin])
