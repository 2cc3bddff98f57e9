"""Settings of the chat: Channels 4 over asgi_ipc, with no database and no other service."""

import os
import secrets

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.aio.IPCChannelLayer",
        "CONFIG": {
            # All processes of this machine with the same prefix are in the same chat.
            "prefix": os.environ.get("CHAT_PREFIX", "chat-demo"),
            # Seconds after which the people of a process that died are removed from the list.
            "expiry": 5,
        },
    },
}

INSTALLED_APPS = ["channels", "chat"]
ROOT_URLCONF = "chat.urls"
ASGI_APPLICATION = "chat.asgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
# Django requires one. Nothing here is signed, so it may change with the process.
SECRET_KEY = secrets.token_hex()
