"""The clocks that the package means, where no test tool reaches them. Must not import any other
module of the package.

freezegun replaces the functions of `time` by fakes, in every module that holds one of them. A
process whose clock stands still would see messages expire that others have just sent, and would
never wake up again. So `monotonic` comes from a copy of the module that only this file has: the
same C function, just as fast, as another object. time-machine leaves this clock alone. libfaketime
replaces it for the whole process, which nothing in Python can prevent
(``FAKETIME_DONT_FAKE_MONOTONIC=1`` does). So every time at which something is due has an upper
bound: a clock that was set back does not postpone it.

Call ``clock.monotonic()``, so that the tests of this package can steer it in a single module.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.machinery import BuiltinImporter
from importlib.util import module_from_spec
from types import ModuleType


def _copy_of_time() -> ModuleType:
    spec = BuiltinImporter.find_spec("time")
    if spec is None or spec.loader is None:
        return time
    copy = module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


# Seconds since some moment, the same for all processes of the machine. Setting the date does not
# move it.
monotonic: Callable[[], float] = _copy_of_time().monotonic
if monotonic is time.monotonic:  # a Python that makes no copies of it
    monotonic = partial(time.clock_gettime, time.CLOCK_MONOTONIC)

# Seconds since 1970, as the kernel writes them into the times of files. freezegun does not replace
# `clock_gettime`, and time-machine does so for CLOCK_REALTIME alone.
_REALTIME_COARSE = 5
of_files: Callable[[], float] = partial(
    time.clock_gettime, _REALTIME_COARSE if sys.platform == "linux" else time.CLOCK_REALTIME
)
