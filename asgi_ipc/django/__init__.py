"""For Django: `layer_from_url` for settings, and the application ``asgi_ipc.django``. In
INSTALLED_APPS, the application adds checks of CHANNEL_LAYERS to ``manage.py check``. Must stay
optional: the layer works without it."""

from .url import layer_from_url

__all__ = ["layer_from_url"]
