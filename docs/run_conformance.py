"""Run the contract suites for our layers and for those of others, and write the results into
docs/conformance.rst, between its two marks.

    python docs/run_conformance.py                  runs all, and writes the tables
    python docs/run_conformance.py asgi_redis       runs layers with this in their name, and prints

The others are installed in separate environments (tests/environments.py). redis-server is started
where it is needed. A test that fails is run twice more; one that then passes fails "sometimes".
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.rst"
BEGIN, END = ".. begin of results\n", ".. end of results\n"
sys.path.insert(0, str(ROOT))

from asgi_ipc.conformance import Channels1Contract, Channels4Contract  # noqa: E402
from asgi_ipc.conformance.base import Contract  # noqa: E402
from tests import environments  # noqa: E402

CASE_SECONDS = 60  # until a test of another layer is given up
PASSED, FAILED, SKIPPED, SOMETIMES = "passed", "failed", "skipped", "sometimes"


class Layer(NamedTuple):
    """A layer, and where its tests are: in which file and class, run in which environment."""

    name: str
    file: str
    case: str
    environment: str = ""  # "" is that of this process


class Result(NamedTuple):
    """How a case of a test ended, and why, if it did not pass."""

    outcome: str
    reason: str = ""


Results = dict[str, Result]  # by name of the case: "test_channel_name[letters]"

OURS, PEERS = "tests/conformance/test_channels{}.py", "tests/conformance/peers/channels{}_layers.py"
LAYERS: dict[type[Contract], list[Layer]] = {
    Channels4Contract: [
        Layer("asgi_ipc.aio", OURS.format(4), "TestAsyncioLayer"),
        Layer("asgi_ipc.testing.aio", OURS.format(4), "TestInProcessAsyncioLayer"),
        Layer("InMemory of Channels", PEERS.format(4), "TestInMemory", "channels_redis"),
        Layer("channels_redis core", PEERS.format(4), "TestRedisCore", "channels_redis"),
        Layer("channels_redis pub/sub", PEERS.format(4), "TestRedisPubSub", "channels_redis"),
    ],
    Channels1Contract: [
        Layer("asgi_ipc", OURS.format(1), "TestBlockingLayer"),
        Layer("asgi_ipc.testing.sync", OURS.format(1), "TestInProcessBlockingLayer"),
        Layer("asgi_ipc 1.4.2", PEERS.format(1), "TestAsgiIpc1", "asgi_ipc1"),
        Layer("asgiref 1.1.2 in-memory", PEERS.format(1), "TestAsgirefInMemory", "asgi_ipc1"),
        Layer("asgi_redis 1.4.3", PEERS.format(1), "TestAsgiRedis", "asgi_redis"),
    ],
}


def run(layer: Layer, only: Iterable[str] = (), timeout: float = 1500) -> Results:
    """Run the suite, or some of its cases, for a layer. Expected failures count as failures."""
    file = ROOT / layer.file
    cases = [f"{file.name}::{layer.case}" + (f"::{case}" if case else "") for case in only or [""]]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "--runxfail", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1", "-W", "ignore"]
        if layer.environment:
            executable = str(environments.environment(layer.environment))
            # None of our configuration, and nothing of this repository to import but the suites.
            command += ["-c", "/dev/null", "--rootdir", str(file.parent), "--noconftest"]
            command += ["--import-mode=importlib", f"--timeout={CASE_SECONDS}"]
            path = str(file.parent)
            if layer.environment == "channels_redis":
                command += ["-o", "asyncio_mode=auto"]
                command += ["-o", "asyncio_default_fixture_loop_scope=function"]
        else:
            executable, path = sys.executable, str(ROOT)
        done = subprocess.run(
            [executable, *command, *cases],
            cwd=file.parent,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{layer.name}: pytest ended with {done.returncode}:\n{done.stdout}")
        return dict(_results(ElementTree.parse(report).iter("testcase")))


def _results(cases: Iterable[ElementTree.Element]) -> Iterable[tuple[str, Result]]:
    for case in cases:
        name = case.get("name", "")
        found = next(
            (child for child in case if child.tag in ("failure", "error", "skipped")), None
        )
        if found is None:
            yield name, Result(PASSED)
            continue
        lines = (found.get("message") or "no reason given").strip().splitlines()
        outcome = SKIPPED if found.tag == "skipped" else FAILED
        yield name, Result(outcome, re.sub(r" at 0x[0-9a-f]+|t\d+-[0-9a-f]{8}", "", lines[0])[:100])


def run_thoroughly(layer: Layer, known: Collection[str] = ()) -> Results:
    """Run the suite, then run the cases that failed twice more by themselves, but for those that
    are known to fail."""
    results = run(layer)
    failed = {name for name, result in results.items() if result.outcome == FAILED} - {*known}
    if failed:
        for again in (run(layer, failed), run(layer, failed)):
            for name, result in again.items():
                if result.outcome == PASSED:
                    results[name] = Result(SOMETIMES, results[name].reason)
    return results


# -- the page -------------------------------------------------------------------------------------


def sentences(contract: type[Contract]) -> dict[str, str]:
    """Return the tests of a suite, in the order of the sentences that they prove, with these."""
    letters = "MB" if contract is Channels4Contract else "MA"
    found = {}
    for name in (name for base in contract.__mro__[::-1] for name in vars(base)):
        if name.startswith("test_"):
            codes, _, sentence = " ".join(getattr(contract, name).__doc__.split()).partition(": ")
            (code,) = (code for code in codes.split(", ") if code[0] in letters)
            found[name] = f"{code}: {sentence}"
    return dict(sorted(found.items(), key=lambda item: _place(item[1], letters)))


def _place(sentence: str, letters: str) -> tuple[int, int]:
    code = sentence.partition(":")[0]
    return letters.index(code[0]), int(code[1:])


def tables(contract: type[Contract], found: dict[str, Results]) -> str:
    """Show the results of all layers for one contract."""
    title = "Channels 4" if contract is Channels4Contract else "Channels 1"
    lines = [f"The contract of {title}", "-" * len(f"The contract of {title}"), ""]
    lines += _table(
        ["layer", "passed", "failed", "sometimes failed", "not applicable"],
        [
            [name] + [_count(results, outcome) for outcome in (PASSED, FAILED, SOMETIMES, SKIPPED)]
            for name, results in found.items()
        ],
    )
    lines += ["The numbers count test cases. By test:", ""]
    rows = []
    for test, sentence in sentences(contract).items():
        cells = [_cell(_cases(results, test)) for results in found.values()]
        rows.append([f"``{test}``", sentence, *cells])
    lines += _table(["test", "sentence", *found], rows)
    for name, results in found.items():
        failed = [(case, r) for case, r in results.items() if r.outcome in (FAILED, SOMETIMES)]
        if failed:
            lines += [f"What {name} fails:", ""]
            for case, result in failed:
                often = " (sometimes)" if result.outcome == SOMETIMES else ""
                lines += [f"- ``{case}``{often}: ``{_quoted(result.reason)}``"]
            lines += [""]
    return "\n".join(lines)


def _cases(results: Results, test: str) -> list[Result]:
    return [result for case, result in results.items() if case.partition("[")[0] == test]


def _count(results: Results, outcome: str) -> str:
    return str(sum(result.outcome == outcome for result in results.values()))


def _cell(results: list[Result]) -> str:
    """Sum up all cases of a test in a word."""
    outcomes = {result.outcome for result in results}
    if outcomes <= {PASSED}:
        return "yes" if results else "–"
    if outcomes == {SKIPPED}:
        return "–"
    bad = sum(result.outcome in (FAILED, SOMETIMES) for result in results)
    word = "sometimes" if FAILED not in outcomes else "**no**"
    return word if len(results) == 1 or bad == len(results) else f"{word} ({bad} of {len(results)})"


def _quoted(text: str) -> str:
    return " ".join(text.replace("`", "'").replace("\\", "\\\\").split()) or "no reason given"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        lines += [f"   {'* -' if number == 0 else '  -'} {cell}" for number, cell in enumerate(row)]
    return [*lines, ""]


def main(wanted: list[str]) -> None:
    pages = []
    for contract, layers in LAYERS.items():
        found = {}
        for layer in layers:
            if wanted and not any(word in layer.name for word in wanted):
                continue
            found[layer.name] = run_thoroughly(layer)
            counts = {o: _count(found[layer.name], o) for o in (PASSED, FAILED, SOMETIMES, SKIPPED)}
            print(f"{layer.name}: {counts}", flush=True)
            if wanted:
                for case, result in found[layer.name].items():
                    if result.outcome != PASSED:
                        print(f"  {case}: {result.outcome}: {result.reason}")
        pages.append(tables(contract, found))
    if not wanted:
        page = PAGE.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(pages)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
