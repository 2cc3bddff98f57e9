"""The addresses of the views."""

from django.conf.urls import url

from . import views

urlpatterns = [
    url(r"^echo/(?P<word>\w+)$", views.echo),
    url(r"^large$", views.large),
    url(r"^upload$", views.upload),
    url(r"^members/(?P<room>\w+)$", views.members),
]
