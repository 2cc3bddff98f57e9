"""The Django application ``asgi_ipc.django``. In INSTALLED_APPS, it adds checks of CHANNEL_LAYERS
to ``manage.py check``. Must not be needed: the layer works without it."""
