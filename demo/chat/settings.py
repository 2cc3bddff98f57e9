"""Settings of the chat: Channels 4 over asgi_ipc, with no database and no other service."""

import os
import secrets

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.aio.IPCChannelLayer",
        "CONFIG": {
            # Whoever names the same prefix on this machine is in the same chat.
            "prefix": os.environ.get("CHAT_PREFIX", "chat-demo"),
            # Seconds. Whoever was served by a process that died is off the list after that.
            "expiry": 5,
        },
    },
}

INSTALLED_APPS = ["channels", "chat"]
ROOT_URLCONF = "chat.urls"
ASGI_APPLICATION = "chat.asgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
# Django wants one; nothing here is signed, so it need not outlive the process.
SECRET_KEY = secrets.token_hex()
