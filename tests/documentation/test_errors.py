"""docs/errors.rst: every text that it explains is one that the package says."""

from __future__ import annotations

import ast
import re

import pytest

from tests.documentation import pages
from tests.environments import REPOSITORY

PAGE = pages.DOCS / "errors.rst"
TEXTS = re.findall(r"^   \* - ``(.*)``$", PAGE.read_text(encoding="utf-8"), re.M)
VARIES = "…"


def texts_of_the_package() -> set[str]:
    """All strings in its code, with an ellipsis for each value that is put in."""
    found = set()
    for path in (REPOSITORY / "asgi_ipc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else VARIES for part in node.values
                )
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


SAID = texts_of_the_package()


def test_it_explains_errors() -> None:
    assert len(TEXTS) > 20


@pytest.mark.parametrize("text", TEXTS)
def test_the_package_says_it(text: str) -> None:
    """What varies on the page may be written out in the code, and the other way round."""
    fixed = [re.escape(part.strip()) for part in text.split(VARIES) if part.strip(" '\"()")]
    pattern = re.compile(".*".join(fixed), re.S)
    shm = {said.replace(VARIES, "/dev/shm") for said in SAID}
    assert any(pattern.search(said) for said in SAID | shm), text
