"""The ASGI application: pages, WebSockets, and the channel of `manage.py runworker`."""

import os

from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path, re_path

from . import consumers, rooms

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")

application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": AllowedHostsOriginValidator(
            URLRouter(
                [
                    re_path(rooms.PATH, consumers.ChatConsumer.as_asgi()),
                    path("board/", consumers.BoardConsumer.as_asgi()),
                ]
            )
        ),
        "channel": ChannelNameRouter({consumers.WORD_COUNT: consumers.WordCounter.as_asgi()}),
    }
)
