"""What a machine says of itself and of a segment: printed on one, compared on another.

Run as a program. It must use nothing but the package and the helpers of its unit tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import struct
import sys

from asgi_ipc.segment.lock import machine, robust_mutexes
from tests.unit.support import busy_store


def facts() -> dict[str, object]:
    return {
        "machine": os.uname().machine,
        "kernel": os.uname().release,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "word": struct.calcsize("P"),
        "byteorder": sys.byteorder,
        "page": os.sysconf("SC_PAGESIZE"),
        "processors": os.cpu_count(),
        "robust_mutexes": robust_mutexes(),
        "lock_machine": machine(),
        "store": hashlib.sha256(busy_store().buffer).hexdigest(),
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
