"""The site has no pages, only a WebSocket."""

urlpatterns: list = []
