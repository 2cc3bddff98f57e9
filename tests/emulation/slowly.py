"""A plugin of pytest for an emulated machine: what must happen is given more time to.

The tests take their bounds from one number when they are imported. It is changed before that, and
after conftest.py has had the asserts beside it rewritten.
"""

from __future__ import annotations

TIMES = 10


def pytest_sessionstart() -> None:
    from asgi_ipc.conformance import base

    base.LIVENESS *= TIMES
    base._patience *= TIMES
