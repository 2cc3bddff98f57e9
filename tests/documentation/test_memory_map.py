"""docs/memory-map.rst is what its script draws from asgi_ipc/store/layout.py, and every constant of
the map is on the page."""

from __future__ import annotations

import re
from pathlib import Path

from asgi_ipc.store import layout
from tests import environments

DOCS = environments.REPOSITORY / "docs"
PAGE = (DOCS / "memory-map.rst").read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    environments.run_script(DOCS / "draw_memory_map.py", "--check")


def test_every_constant_is_on_the_page() -> None:
    """Except those before the first section, which say what a word is."""
    source = Path(layout.__file__).read_text(encoding="utf-8").partition("\n# -- ")[2]
    constants = re.findall(r"^([A-Z][A-Z0-9_]+)\b", source, re.MULTILINE)
    assert len(constants) > 100
    assert [name for name in constants if not re.search(rf"\b{name}\b", PAGE)] == []


def test_no_two_words_of_a_table_lie_in_one_place() -> None:
    """This also finds a number that was given twice in layout.py."""
    tables = re.findall(r"^word .*\n[= ]+\n((?:.+\n)+?)[= ]+\n", PAGE, re.MULTILINE)
    assert len(tables) >= 11
    for table in tables:
        places = [row.partition("``")[0].strip() for row in table.splitlines()]
        assert len(places) == len(set(places)), table
