"""Settings of Django 1.11 with a channel layer of its default size."""

import os

SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["channels"]
MIDDLEWARE = []
ROOT_URLCONF = "tests.clients.channels1_site.urls"
DATABASE = os.environ.get("SITE_DATABASE", ":memory:")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        "TEST": {"NAME": DATABASE},
    },
}
LAYER = {"prefix": os.environ["SITE_PREFIX"]}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.IPCChannelLayer",
        "CONFIG": LAYER,
        "TEST_CONFIG": LAYER,
        "ROUTING": "tests.clients.channels1_site.consumers.ROUTING",
    },
}
TEST_RUNNER = "asgi_ipc.testing.django.DiscoverRunner"
