"""Runs the examples of docs/wsgi.rst, and checks its figures."""

from __future__ import annotations

import inspect
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.wsgi import AsgiToWsgiWorker, WsgiToAsgiAdapter, adapter, messages
from tests import environments, processes
from tests.documentation import pages
from tests.waiting import LIVENESS

PAGE = (pages.DOCS / "wsgi.rst").read_text(encoding="utf-8")
EXAMPLES = {block.file: block.text for block in pages.blocks(pages.DOCS / "wsgi.rst")}


@pytest.mark.parametrize("by", ["command", "run_worker.py"])
def test_the_examples(prefix: str, tmp_path: Path, by: str) -> None:
    for module in ("flask", "waitress"):
        pytest.importorskip(module, reason=f"lacking: {module}")
    for name, code in EXAMPLES.items():
        code = code.replace('"mysite"', f'"{prefix}"')
        (tmp_path / name).write_text(code, encoding="utf-8")
    variables = environments.child_environment(
        PYTHONPATH=f"{environments.REPOSITORY}:{tmp_path}", PYTHONUNBUFFERED="1"
    )

    def run(name: str, *arguments: str) -> Any:
        return processes.running(
            [sys.executable, *arguments],
            log=tmp_path / f"{name}.log",
            environment=variables,
            folder=tmp_path,
        )

    port = processes.free_port()
    command = ["-m", "asgi_ipc.wsgi", "hello:application", "--prefix", prefix]
    worker = [*command, "--threads", "4"] if by == "command" else [by]
    server = ["-m", "waitress", "--listen", f"127.0.0.1:{port}", "front:application"]
    with run("server", *server) as front, run("worker", *worker):
        front.wait_for_port(port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LIVENESS) as response:
            assert response.read() == b"Hello from a worker!"


@pytest.mark.parametrize("cls", [WsgiToAsgiAdapter, AsgiToWsgiWorker])
def test_the_options_are_those_that_there_are(cls: type[Any]) -> None:
    shown = ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default}"
        for name, parameter in inspect.signature(cls).parameters.items()
    )
    assert f"\n``{cls.__name__}({shown})``\n" in PAGE


def test_the_figures_of_windows_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert adapter.WINDOW == adapter.UPLOAD_WINDOW * messages.BODY_CHUNK == 1 << 20
    assert "is at most 1 MiB of a response ahead of the client" in text
