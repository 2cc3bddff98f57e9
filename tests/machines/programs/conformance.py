"""Runs the conformance suite of asgiref 1.1.2 on a layer for several machines; prints JSON.

usage: python conformance.py asgi_redis PREFIX URL     asgi_redis.RedisLocalChannelLayer
       python conformance.py twin PREFIX OTHER_PREFIX  our blocking twin; its remote layer is the
                                                       asyncio layer of this package
"""

import json
import sys
import unittest

from asgiref import conformance

CAPACITY = 5


def make_layer():
    kind, prefix, where = sys.argv[1:4]
    options = {"expiry": 1, "group_expiry": 2, "capacity": CAPACITY}
    if kind == "asgi_redis":
        from asgi_redis import RedisLocalChannelLayer

        return RedisLocalChannelLayer(prefix=prefix, hosts=[where], **options)
    from asgi_ipc import LocalAndRemoteChannelLayer

    backend = "asgi_ipc.aio.IPCChannelLayer"
    return LocalAndRemoteChannelLayer(
        {"BACKEND": backend, "CONFIG": {"prefix": where}}, {"prefix": prefix, **options}
    )


class Suite(conformance.ConformanceTestCase):
    """The suite, with only the parameters that it asks for overridden, in seconds."""

    expiry_delay = 1.1
    capacity_limit = CAPACITY

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.channel_layer = make_layer()


def main() -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Suite)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    outcome = {
        "run": result.testsRun,
        "failed": [str(test) for test, _ in result.failures + result.errors],
        "skipped": [str(test) for test, _ in result.skipped],
    }
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
