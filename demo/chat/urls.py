"""The two pages. Both are templates and nothing more: all that moves comes over the WebSocket."""

from django.urls import path, re_path
from django.views.generic import TemplateView

from . import rooms

urlpatterns = [
    path("", TemplateView.as_view(template_name="chat/index.html")),
    re_path(rooms.PATH, TemplateView.as_view(template_name="chat/room.html")),
]
