"""For the tests of programs that use a channel layer. Must not be used in production.

- `asgi_ipc.testing.aio.InProcessChannelLayer` and `asgi_ipc.testing.sync.InProcessChannelLayer` are
  the two layers on the same engine, over memory that only this process uses.
- `asgi_ipc.testing.isolation` keeps the layers of a test run apart from those of running programs.
- `asgi_ipc.testing.plugin` does the same for pytest, which finds it by itself, and adds fixtures.
- `asgi_ipc.testing.django` does the same for ``manage.py test``.

`asgi_ipc.conformance` is for the tests of channel layers themselves.
"""
