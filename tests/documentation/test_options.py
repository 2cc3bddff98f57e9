"""docs/options.rst: its table has every option and default, and what it calls refused is."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.errors import InvalidOption
from asgi_ipc.options import Options
from tests.documentation import pages

PAGE = pages.DOCS / "options.rst"
ROWS = dict(
    re.findall(
        r"^   \* - (\w+)\n     - ``(.*)``\n     - (?:.*\n)", PAGE.read_text(encoding="utf-8"), re.M
    )
)
REFUSED = dict(
    re.findall(
        r"^   \* - (\w+)\n(?:     .*\n)+?     - ``([^`]*)``\n(?=   \* -|\n)",
        PAGE.read_text(encoding="utf-8"),
        re.M,
    )
)


def value(written: str) -> object:
    return eval(compile(ast.parse(written, mode="eval"), str(PAGE), "eval"), {})


def test_it_has_every_option_with_its_default() -> None:
    written = {name: value(default) for name, default in ROWS.items()}
    assert written == {field.name: field.default for field in dataclasses.fields(Options)}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Options)])
def test_what_it_says_is_refused_is(name: str) -> None:
    with pytest.raises(InvalidOption, match=name):
        IPCChannelLayer(**{name: value(REFUSED[name])})  # type: ignore[arg-type]


def test_the_example(tmp_path: Path, prefix: str) -> None:
    with pages.reader(tmp_path, prefix) as reader:
        [block] = pages.blocks(PAGE)
        code = reader.write(block).read_text(encoding="utf-8")
    names: dict[str, IPCChannelLayer] = {}
    exec(code, names)
    layer = names["layer"]
    assert layer.prefix == prefix
    full: Callable[[str], int] = layer._options.capacities().of
    assert [full("thumbnails"), full("http.response!abc"), full("websocket.receive")] == [
        1000,
        20,
        500,
    ]
    for _ in range(500):
        layer.send("websocket.receive", {})
    with pytest.raises(layer.ChannelFull):
        layer.send("websocket.receive", {})
    layer.close()
