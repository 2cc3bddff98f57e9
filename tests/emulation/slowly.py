"""A plugin of pytest for an emulated machine: what must happen is given more time to.

The tests and the contract suites take their bounds from a number each when they are imported. Both
are changed before that, and after conftest.py has had the asserts of the suites rewritten.
"""

from __future__ import annotations

TIMES = 10


def pytest_sessionstart() -> None:
    from asgi_ipc.conformance import base
    from tests import waiting

    base.LIVENESS *= TIMES
    base._patience *= TIMES
    waiting.LIVENESS *= TIMES
