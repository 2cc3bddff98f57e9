#!/usr/bin/python3
"""The first process of an emulated machine: runs tests, prints what came of them, switches off.

It is started by the kernel, with the arguments of pytest. Each line for the host begins
with a mark, because the kernel and pytest print to the same console. This file must import nothing
of the project: it runs before there is a ``/proc``.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import traceback
from xml.etree import ElementTree

PROJECT = "/project"
REPORT = "/tmp/report.xml"
MARK = "@@ "
MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/tmp"),
)
SWITCH_OFF = 0x4321FEDC  # of reboot(2)
CLEAN = {
    "PATH": "/usr/bin:/usr/sbin:/bin:/sbin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONPATH": PROJECT,
}


def tell(kind: str, **values: object) -> None:
    print(MARK + json.dumps({"kind": kind, **values}), flush=True)


def mount_all() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, place in MOUNTS:
        os.makedirs(place, exist_ok=True)
        if libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None):
            raise OSError(ctypes.get_errno(), f"mounting {place}")
    os.symlink("/proc/self/fd", "/dev/fd")


def run_tests(arguments: list[str]) -> int:
    """Return the exit status of pytest; meanwhile bury every orphan, as a first process must."""
    pytest = os.spawnve(
        os.P_NOWAIT,
        sys.executable,
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-p", "tests.emulation.slowly", "--color=no", f"--junit-xml={REPORT}", *arguments),
        ],
        CLEAN,
    )
    while True:
        ended, status = os.wait()
        if ended == pytest:
            return os.waitstatus_to_exitcode(status)


def main(arguments: list[str]) -> None:
    mount_all()
    os.chdir(PROJECT)
    facts = subprocess.run(
        [sys.executable, "-m", "tests.emulation.facts"], env=CLEAN, stdout=subprocess.PIPE
    )
    tell("facts", facts=json.loads(facts.stdout))
    status = run_tests(arguments)
    for case in ElementTree.parse(REPORT).iter("testcase"):
        [*remarks] = [child for child in case if child.tag in ("failure", "error", "skipped")]
        tell(
            "test",
            file=case.get("classname", "").replace(".", "/") + ".py",
            name=case.get("name"),
            outcome=remarks[0].tag if remarks else "passed",
            text="\n".join(f"{child.get('message')}\n{child.text or ''}" for child in remarks),
        )
    tell("end", status=status)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os.sync()
        ctypes.CDLL(None).reboot(SWITCH_OFF)
