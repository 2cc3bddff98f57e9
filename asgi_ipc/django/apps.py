"""The configuration that Django reads if ``asgi_ipc.django`` is in INSTALLED_APPS. Must not check
anything itself: see `checks`."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from .checks import check_channel_layers


class AsgiIpcConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    name = "asgi_ipc.django"
    label = "asgi_ipc"
    verbose_name = "asgi_ipc"

    def ready(self) -> None:
        checks.register(check_channel_layers, "asgi_ipc")
