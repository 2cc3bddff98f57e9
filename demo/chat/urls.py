"""The pages. All are plain templates; their changes come over WebSockets."""

from django.urls import path, re_path
from django.views.generic import TemplateView

from . import rooms


def page(name):
    suggested = {"suggested": rooms.SUGGESTED}
    return TemplateView.as_view(template_name=f"chat/{name}.html", extra_context=suggested)


urlpatterns = [
    path("", page("index")),
    path("board/", page("board")),
    re_path(rooms.PATH, page("room")),
]
