"""Settings of a chat on one machine. Its tests never disturb its servers: see TEST_RUNNER and
pytest.ini."""

import os
from pathlib import Path

SECRET_KEY = "of an example"
DEBUG = True
INSTALLED_APPS = ["daphne", "channels", "chatsite"]
ROOT_URLCONF = "chatsite.urls"
ASGI_APPLICATION = "chatsite.asgi.application"
STATIC_URL = "static/"
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.aio.IPCChannelLayer",
        "CONFIG": {"prefix": os.environ.get("CHAT_PREFIX", "chatsite")},
    },
}
DATABASE = Path(os.environ.get("CHAT_DATABASE", "chat.sqlite3"))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        # A file, because the live server of a test is another process.
        "TEST": {"NAME": DATABASE.with_name("test-" + DATABASE.name)},
    },
}
TEST_RUNNER = "asgi_ipc.testing.django.DiscoverRunner"
