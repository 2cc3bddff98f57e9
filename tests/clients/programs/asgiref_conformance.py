"""asgiref 1.1.2's own conformance suite on the blocking layer; tells the outcome as JSON.

usage: python asgiref_conformance.py PREFIX
"""

import json
import sys
import unittest

from asgiref import conformance

from asgi_ipc import IPCChannelLayer


class OurLayer(conformance.ConformanceTestCase):
    """The suite with nothing overridden but the parameters it asks for, in seconds."""

    expiry_delay = 1.1
    capacity_limit = 5

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.channel_layer = IPCChannelLayer(
            prefix=sys.argv[1], expiry=1, group_expiry=2, capacity=cls.capacity_limit
        )


def main() -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(OurLayer)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    outcome = {
        "run": result.testsRun,
        "failed": [str(test) for test, _ in result.failures + result.errors],
        "skipped": [str(test) for test, _ in result.skipped],
    }
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
