"""For Django: `layer_from_url` for settings, and the application ``asgi_ipc.django``. In
INSTALLED_APPS, it adds checks of CHANNEL_LAYERS to ``manage.py check``. Must not be needed: the
layer works without it."""

from .url import layer_from_url

__all__ = ["layer_from_url"]
