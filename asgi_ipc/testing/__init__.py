"""For the tests of programs that use a channel layer. Nothing here is for production.

- `asgi_ipc.testing.aio.InProcessChannelLayer` and `asgi_ipc.testing.sync.InProcessChannelLayer`:
  both layers on the same engine, over memory of this process alone.
- `asgi_ipc.testing.isolation`: layers of a test run never meet those of a running program.
- `asgi_ipc.testing.plugin`: the same for pytest, which finds it by itself, with fixtures.
- `asgi_ipc.testing.django`: the same for ``manage.py test``.

`asgi_ipc.conformance` is for the tests of channel layers themselves.
"""
