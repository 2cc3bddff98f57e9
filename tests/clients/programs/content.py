"""A message's worth of every kind of value that travels."""

CONTENT = {
    "text": "1 pound is \N{POUND SIGN}1, and \N{SNOWMAN} is one character",
    "bytes": b"\xc2\xa3 is no text \x00\xff",
    "empty": ["", b"", [], {}],
    "numbers": [0, -1, 2**63 - 1, -(2**63), 0.1, 1e300],
    "others": [True, False, None],
    "nested": {"list": [{"deep": [["down"]]}]},
    "large": b"0123456789abcdef" * 4096,
}


def content(number: int) -> dict:
    """As above, but no two alike."""
    return {**CONTENT, "number": number}
