"""For ``manage.py test``, with any version of Channels. In the settings::

    TEST_RUNNER = "asgi_ipc.testing.django.DiscoverRunner"

Layers then have prefixes of the run's own (see `isolation`), and each process of ``--parallel`` has
prefixes of its own.
"""

from __future__ import annotations

import sys
from typing import Any

from django.test import runner

from .isolation import Isolation, isolate_worker


def _init_worker(*args: Any, **options: Any) -> None:
    runner._init_worker(*args, **options)
    isolate_worker()


class ParallelTestSuite(runner.ParallelTestSuite):  # type: ignore[misc]
    """Tests in several processes, whose layers do not meet."""

    init_worker = _init_worker


class IsolatedLayers:
    """A mixin for test runners."""

    parallel_test_suite = ParallelTestSuite

    def setup_test_environment(self, **options: Any) -> None:
        self._isolation = Isolation()
        self._isolation.begin()
        self._leaks: list[str] = []
        super().setup_test_environment(**options)  # type: ignore[misc]

    def teardown_test_environment(self, **options: Any) -> None:
        super().teardown_test_environment(**options)  # type: ignore[misc]
        self._leaks = self._isolation.end()

    def suite_result(self, suite: Any, result: Any, **options: Any) -> Any:
        """The number of failures; what layers were left with counts as well."""
        for leak in self._leaks:
            print("left behind:", leak, file=sys.stderr)
        failed = super().suite_result(suite, result, **options)  # type: ignore[misc]
        return failed + len(self._leaks)


class DiscoverRunner(IsolatedLayers, runner.DiscoverRunner):  # type: ignore[misc]
    """Django's test runner; its layers never meet those of a running site."""
