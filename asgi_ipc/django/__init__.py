"""The Django application ``asgi_ipc.django``: in INSTALLED_APPS it adds checks of CHANNEL_LAYERS to
``manage.py check``. It has no models and no templates, and the layer works without it."""
