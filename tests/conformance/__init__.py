"""The contract suites of `asgi_ipc.conformance`, run for our layers and for those of others. Other
tests import their helpers from here."""

from asgi_ipc.conformance.base import LIVENESS, MESSAGE, in_threads, until
from tests.environments import run_python

__all__ = ["LIVENESS", "MESSAGE", "in_threads", "run_python", "until"]
