"""A runner for ``manage.py test``, with any version of Channels. Must not import Channels. In the
settings::

    TEST_RUNNER = "asgi_ipc.testing.django.DiscoverRunner"

The layers of a run then have their own prefixes (see `isolation`), separate for each process of
``--parallel``.
"""

from __future__ import annotations

import sys
from unittest import TestResult, TestSuite

from django.test import runner

from .isolation import Isolation, isolate_worker


def _init_worker(*args: object, **options: object) -> None:
    runner._init_worker(*args, **options)
    isolate_worker()


class ParallelTestSuite(runner.ParallelTestSuite):  # type: ignore[misc]
    """Tests in several processes, whose layers are separate."""

    init_worker = _init_worker


class IsolatedLayers:
    """A mixin for test runners."""

    parallel_test_suite = ParallelTestSuite

    def setup_test_environment(self, **options: object) -> None:
        self._isolation = Isolation()
        self._isolation.begin()
        self._leaks: list[str] = []
        super().setup_test_environment(**options)  # type: ignore[misc]

    def teardown_test_environment(self, **options: object) -> None:
        super().teardown_test_environment(**options)  # type: ignore[misc]
        self._leaks = self._isolation.end()

    def suite_result(self, suite: TestSuite, result: TestResult, **options: object) -> int:
        """Return the number of failures; what the tests have left behind counts too."""
        for leak in self._leaks:
            print("left behind:", leak, file=sys.stderr)
        failed: int = super().suite_result(suite, result, **options)  # type: ignore[misc]
        return failed + len(self._leaks)


class DiscoverRunner(IsolatedLayers, runner.DiscoverRunner):  # type: ignore[misc]
    """Django's test runner, with layers that are separate from those of a running site."""
