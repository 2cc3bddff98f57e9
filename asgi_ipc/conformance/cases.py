"""The values and names that the contracts speak of, as parameters of tests. Must not import
anything of the package around `conformance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

VALUES = [
    pytest.param(value, id=name)
    for name, value in {
        "bytes": b"\xc2\xa3\x00\xff",
        "empty bytes": b"",
        "str": "plain",
        "str beyond ASCII": "\xa3 \u20ac \U0001f612 \x00",
        "empty str": "",
        "smallest int": -(2**63),
        "largest int": 2**63 - 1,
        "float": 0.1,
        "largest float": 1.7976931348623157e308,
        "infinite float": float("-inf"),
        "list": [1, "two", b"three", [4.0, []]],
        "dict": {"one": {"two": {"": []}}},
        "true": True,
        "false": False,
        "none": None,
    }.items()
]

# The largest message that a layer must allow, in shapes that are packed in different ways.
MEGABYTE_OF_JSON = {
    "text": {"text": "x" * (2**20 - 12)},
    "floats": {"numbers": [0.5] * (2**20 // 5 - 3)},
    "dicts": {"rows": [{"id": number + 10**5, "on": True} for number in range(2**20 // 28 - 1)]},
}

# Names that both contracts allow for a group, and so for a channel.
PLAIN_NAMES = ["letters", "UPPER", "0123", "with-hyphen", "with_underscore", "with.dot", "n" * 99]

MARKED_NAMES = ["single?reader", "process!specific", "p.-_0!Q.-_9", "n" * 49 + "!" + "n" * 49]

BAD_NAMES = {
    "empty": "",
    "space": "a b",
    "slash": "a/b",
    "colon": "a:b",
    "plus": "a+b",
    "letter beyond ASCII": "caf\xe9",
    "digit beyond ASCII": "a\u0663",
    "newline inside": "a\nb",
    "newline at the end": "a\n",
    "100 characters": "n" * 100,
    "bytes": b"name",
    "int": 5,
    "none": None,
}

BAD_CHANNEL_NAMES = {
    **BAD_NAMES,
    "only a mark": "!",
    "two ?": "a?b?c",
    "two !": "a!b!c",
    "both marks": "a?b!c",
    "letter beyond ASCII after !": "a!caf\xe9",
    "letter beyond ASCII after ?": "a?caf\xe9",
}

BAD_GROUP_NAMES = {**BAD_NAMES, "with ?": "a?b", "with !": "a!b"}


def each(cases: Mapping[str, object]) -> list[ParameterSet]:
    """Return parameters for parametrize, with the keys as their names."""
    return [pytest.param(value, id=name) for name, value in cases.items()]
