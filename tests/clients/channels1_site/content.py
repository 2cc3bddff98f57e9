"""The content of the large view, which the tests know too: no two pieces of it are alike."""

import hashlib

LARGE = 1500000


def large_content():
    lines = (hashlib.sha512(b"%d" % number).digest() for number in range(LARGE // 64 + 1))
    return b"".join(lines)[:LARGE]
