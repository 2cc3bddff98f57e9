"""What a type checker makes of the constructors. mypy is run on small programs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.options import LayerOptions, LocalOptions, Options

LAYERS = [
    "asgi_ipc.IPCChannelLayer",
    "asgi_ipc.aio.IPCChannelLayer",
    "asgi_ipc.testing.sync.InProcessChannelLayer",
    "asgi_ipc.testing.aio.InProcessChannelLayer",
]
MACHINES = ["asgi_ipc.LocalAndRemoteChannelLayer", "asgi_ipc.aio.LocalAndRemoteChannelLayer"]


def names_and_types(typed: Any) -> dict[str, str]:
    return {name: each.__forward_arg__ for name, each in typed.__annotations__.items()}


def test_the_typed_options_are_those_that_are_read() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(Options)}
    given = {"prefix": fields.pop("prefix")}
    fields["channel_memory"] = fields["message_memory"]
    assert names_and_types(LayerOptions) == fields
    assert names_and_types(LocalOptions) == {**fields, **given}
    assert not LayerOptions.__required_keys__ and not LocalOptions.__required_keys__


def test_a_type_checker_finds_misspelt_options_and_wrong_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="lacking: mypy")
    lines = ["import asgi_ipc.aio, asgi_ipc.testing.aio, asgi_ipc.testing.sync"]
    wrong = {}

    def line(text: str, complaint: str = "") -> None:
        lines.append(text)
        if complaint:
            wrong[len(lines)] = complaint

    for layer in LAYERS:
        line(f"{layer}('site', capacity=3, channel_capacity={{'a*': 1}}, default=str)")
        line(f"{layer}(prefix='site', mode=0o660, group='site', expiry=1, default='a.b')")
        line(f"{layer}('site', capcity=3)", '"capcity"')
        line(f"{layer}('site', capacity='3')", "incompatible type")
        line(f"{layer}('site', default=5)", "incompatible type")
    for layer in MACHINES:
        line(f"{layer}({{}}, {{'prefix': 'site', 'capacity': 3}})")
        line(f"{layer}({{}}, {{'prefix': 'site', 'capcity': 3}})", "LocalOptions")
        line(f"{layer}({{}}, timeout=3)", '"timeout"')
    line("async def main() -> None:")
    line("    async with asgi_ipc.aio.IPCChannelLayer('site') as layer:")
    line("        async for message in layer.messages('jobs'):")
    line("            message.lower()", '"lower"')
    line("        (await layer.receive('jobs', timeout=5))['key']")
    line("        await layer.receive('jobs', timeout='5')", "incompatible type")
    line("with asgi_ipc.IPCChannelLayer('site') as blocking:")
    line("    for message in blocking.messages('jobs'):")
    line("        message.lower()", '"lower"')
    line("    blocking.new_channel().lower()")
    program = tmp_path / "program.py"
    program.write_text("\n".join(lines) + "\n")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
        + ["--cache-dir", str(tmp_path / "cache"), "--no-error-summary", str(program)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    found = {}
    for complaint in done.stdout.splitlines():
        where, _, what = complaint.partition(": error: ")
        if what:
            found[int(where.rpartition(":")[2])] = what
    assert found.keys() == wrong.keys(), done.stdout + done.stderr
    for number, what in wrong.items():
        assert what in found[number]
