"""In the suites, the layers of others do what docs/conformance.rst says.

The default run has only channels_redis core here; InMemory and asgiref's layer are in the other
files.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.conformance import Channels1Contract, Channels4Contract
from tests import environments, processes
from tests.documentation import pages

DOCS = environments.REPOSITORY / "docs"
FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load(DOCS / "run_conformance.py")
PAGE = (DOCS / "conformance.rst").read_text(encoding="utf-8")
OTHERS = [
    layer
    for layers in script.LAYERS.values()
    for layer in layers
    if layer.name == "channels_redis core" or (FULL and layer.environment)
]


def documented(layer: str) -> tuple[set[str], set[str]]:
    """Return the cases that fail always, and those that fail sometimes, as the page says."""
    part = PAGE.partition(f"What {layer} fails:\n")[2]
    always, sometimes = set(), set()
    for line in part.strip().splitlines():
        found = re.match(r"- ``(.+?)``( \(sometimes\))?: ", line)
        if found is None:
            break
        (sometimes if found[2] else always).add(found[1])
    return always, sometimes


# Whether a layer of others loses them depends on what else the machine does: redis-py swallows a
# cancellation that comes together with an answer.
RACES = ("test_receive_cancelled_while_a_message_comes_loses_nothing",)


@pytest.mark.parametrize("layer", OTHERS, ids=lambda layer: layer.name)
def test_a_layer_of_others_does_what_the_page_says(layer: Any) -> None:
    if "redis" in layer.name and shutil.which("redis-server") is None:
        pytest.skip("lacking: redis-server")
    always, sometimes = documented(layer.name)
    assert always, "the page names no failure of a layer that has some"
    # At full length, those also fail each time that are said to do so.
    results = script.run_thoroughly(layer, known=() if FULL else always | sometimes)
    assert len(results) > 130
    ended: dict[str, set[str]] = {script.PASSED: set(), script.FAILED: set()}
    for case, result in results.items():
        ended.setdefault(result.outcome, set()).add(case)
    unknown = ended[script.FAILED] - always - sometimes
    assert [case for case in unknown if not case.startswith(RACES)] == [], "on three runs"
    assert not ended[script.PASSED] & always


@pytest.mark.parametrize("contract", [Channels1Contract, Channels4Contract])
def test_the_page_has_every_test_with_its_sentence(contract: Any) -> None:
    for name, sentence in script.sentences(contract).items():
        assert f"* - ``{name}``\n     - {sentence}\n" in PAGE


def test_the_example_on_the_page_runs(tmp_path: Path) -> None:
    (block,) = pages.blocks(DOCS / "conformance.rst")
    (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    with processes.running(
        [sys.executable, "-m", "pytest", "-p", "no:django", "-o", "asyncio_mode=auto"]
        + ["-W", "ignore", "-p", "no:cacheprovider", "-k", "capacity or peer or many_writers"],
        log=tmp_path / "log",
        environment=environments.child_environment(),
        folder=tmp_path,
    ) as suite:
        assert re.search(r"\b[4-9] passed, \d+ deselected", suite.wait())


@pytest.mark.parametrize("contract", [Channels1Contract, Channels4Contract])
def test_ours_fail_nothing(contract: Any) -> None:
    """On the page. The other files here test that it is true."""
    for layer in script.LAYERS[contract]:
        failed = re.search(rf"\* - {re.escape(layer.name)}\n     - \d+\n     - (\d+)\n", PAGE)
        assert failed is not None, layer.name
        assert layer.environment or failed[1] == "0"
