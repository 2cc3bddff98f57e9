"""Writes native/layout.h from asgi_ipc/store/layout.py: the numbers that the compiled path needs.

    python native/write_layout.py            writes the header
    python native/write_layout.py --check    fails and shows the difference if it is out of date

Run the first after a change of layout.py, or of `REVISION` in asgi_ipc/store/native.py; a test runs
the second.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

HEADER = Path(__file__).resolve().parent / "layout.h"
sys.path.insert(0, str(HEADER.parent.parent))

from asgi_ipc.attachment import unchanged, upkeep  # noqa: E402
from asgi_ipc.store import layout, queues, wakes  # noqa: E402
from asgi_ipc.store.native import fingerprint  # noqa: E402

NAMES = """
    WORD RECORD_WORDS QUEUE_WORDS LOCK_BYTES
    H_LOCK S_DIRTY S_ENDS HALF_TAIL HALF_HEAD S_SEQ S_LIVE S_BIGGEST S_LIMIT
    S_COUNTER S_SWEEP_AT S_BURY_AT
    CLEAN DIRTY
    R_GENERATION Q_FIRST Q_LAST Q_PENDING Q_SENT Q_WAITING Q_WAITERS WAITER_SET_WORDS
    Q_RUNG Q_QUICK Q_OWED
    L_SIZE L_STATE L_SEQ L_NEXT L_PREV L_QUEUE L_LENGTH L_EXPIRES L_SENT L_LOCALS L_CHECK
    LIVE DEAD
"""

TEXT = """\
/* Written by native/write_layout.py from asgi_ipc/store/layout.py. Do not edit; run the script. */

#ifndef ASGI_IPC_LAYOUT_H
#define ASGI_IPC_LAYOUT_H

/* Of all numbers of layout.py: the Python code uses what is compiled only if it has the same. */
#define FINGERPRINT {fingerprint:#010x}

#define CHECKED {checked} /* bytes of the largest message that is usual */

/* Of wakes.py: seconds, and what is added to the id of a waiter that was parked, or leaves. */
#define QUICK {quick}
#define UNDER_WAY {under_way}
#define WOKEN {woken}
#define LEAVING {leaving}

/* Of upkeep.py and unchanged.py: seconds, and the word that counts the members of all groups. */
#define CHECK_EVERY {check_every}
#define SWEEP_EVERY {sweep_every}
#define SWEEP_SOON {sweep_soon}
#define SWEPT_WITHIN {swept_within}
#define MEMBERS {members}

{numbers}

#endif
"""


def written() -> str:
    """The header."""
    numbers = [f"#define {name} {getattr(layout, name)}" for name in NAMES.split()]
    return TEXT.format(
        fingerprint=fingerprint(),
        checked=queues._CHECKED,
        quick=wakes.QUICK,
        under_way=wakes.UNDER_WAY,
        woken=wakes.WOKEN,
        leaving=wakes.LEAVING,
        check_every=upkeep.CHECK_EVERY,
        sweep_every=upkeep.SWEEP_EVERY,
        sweep_soon=upkeep.SWEEP_SOON,
        swept_within=unchanged.SWEPT_WITHIN,
        members=unchanged.MEMBERS,
        numbers="\n".join(numbers),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if out of date")
    check = parser.parse_args().check
    text = written()
    if not check:
        HEADER.write_text(text, encoding="utf-8")
        return
    found = HEADER.read_text(encoding="utf-8").splitlines()
    changed = "\n".join(difflib.unified_diff(found, text.splitlines(), "layout.h", lineterm=""))
    if changed:
        sys.exit(f"{changed}\n\nThe header is out of date: python native/write_layout.py")


if __name__ == "__main__":
    main()
