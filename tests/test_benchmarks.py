"""The benchmarks run, and the pages show what they measured.

Nothing here looks at a time: figures of the least possible number of repetitions say nothing. All
tests share one run. The peers take part only at full length, since they need environments of their
own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import WORKLOADS
from benchmarks.layers.contenders import CONTENDERS
from benchmarks.layers.contracts import run_to_end
from benchmarks.measure import Figures
from tests import environments
from tests.compiling import needs_compiled

PAGES = (
    "README.rst",
    "docs/performance.rst",
    "docs/wsgi.rst",
    "docs/howto/several-machines.rst",
)
FOLDER = environments.REPOSITORY / "docs" / "benchmarks"
SHOWN = Figures.read([str(FOLDER / "figures.json")])
FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
OURS = ("asgi_ipc-blocking", "asgi_ipc-asyncio")
PURE = tuple(f"{name}-pure" for name in OURS)
NEXT_TO_THEM = ("InMemory", "FIFO-blocking", "FIFO-asyncio")

# What a workload measures of our layers: a table, and a column that must have a figure.
MEASURED = {
    "pair": "ratio",
    "messages": "flatness",
    "channels": "flatness",
    "groups": "flatness",
    "group sends": "flatness",
    "sizes": "flatness",
    "roundtrip": "ratio",
    "pace": "p50",
    "throughput": "rate",
    "scaling": "rate",
    "broadcast": "last",
    "idle": "spent",
    "recovery": "next",
}


def run(
    module: str, *arguments: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", module, *arguments],
        cwd=environments.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON file of all workloads of our layers, as short as can be."""
    path = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    layers = [f"--layer={name}" for name in (*OURS, *PURE, *NEXT_TO_THEM)]
    done = run("benchmarks", "--tiny", "--json", str(path), *layers)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def measured(path: Path) -> Figures:
    return Figures.read([str(path)])


@pytest.mark.parametrize("table", MEASURED)
@pytest.mark.parametrize("layer", OURS)
def test_every_workload_measures_both_facades(measured: Figures, table: str, layer: str) -> None:
    rows = measured.rows(table, layer=layer)
    assert rows and all(row[MEASURED[table]] is not None for row in rows), rows


@needs_compiled
@pytest.mark.parametrize("table", ["pair", "throughput", "roundtrip"])
@pytest.mark.parametrize("layer", PURE)
def test_the_compiled_path_is_measured_beside_the_python_code(
    measured: Figures, table: str, layer: str
) -> None:
    test_every_workload_measures_both_facades(measured, table, layer)


def test_real_servers_are_measured(measured: Figures) -> None:
    environments.environment("channels1")  # there, or a skip
    assert measured.rows("http", layer=OURS[0], clients=8)[0]["rate"] > 0
    assert measured.rows("websocket", layer=OURS[1])[0]["rate"] > 0


def test_the_wsgi_adapters_are_measured(measured: Figures) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("lacking: wrk (Debian: apt-get install wrk)")
    pytest.importorskip("gunicorn", reason="lacking: gunicorn")
    rows = measured.rows("wsgi")
    assert rows and all(row["direct rate"] > 0 and row["layer rate"] > 0 for row in rows)


def test_several_machines_are_measured_beside_channels_redis(measured: Figures) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("lacking: redis-server")
    for kind in ("normal", "process-specific"):
        assert measured.rows("remote-pair", layer=f"local and remote, {kind}")[0]["ratio"] > 0


def test_every_way_to_wake_a_process_is_measured(measured: Figures) -> None:
    for style in ("blocking", "asyncio"):
        shown = SHOWN.rows(f"wakeups-{style}")
        ways = {row["way"] for row in measured.rows(f"wakeups-{style}") if row["unpinned"] > 0}
        assert ways and ways <= {row["way"] for row in shown}
        assert len(ways) == len(shown) or not hasattr(os, "eventfd")


def test_nothing_was_lost_doubled_or_reordered(measured: Figures) -> None:
    for row in measured.rows("throughput") + measured.rows("scaling"):
        assert (row["lost"], row["doubled"], row["disordered"]) == (0, 0, 0), row


def test_recovery_keeps_what_is_pending(measured: Figures) -> None:
    for row in measured.rows("recovery"):
        assert row["left"] == row["messages"], row


def test_a_report_is_made_of_the_figures(path: Path, measured: Figures, tmp_path: Path) -> None:
    page = tmp_path / "page.rst"
    page.write_text("before\n\n.. figures: pair\n\nold\n.. end of figures\n\nafter\n")
    done = run("benchmarks.report", str(path), "--into", str(tmp_path), "--fill", str(page))
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / report.PLOT).read_text(encoding="utf-8")
    figure = format(measured.rows("pair")[0]["pair"], ",.2f")
    for written in (page, tmp_path / report.RESULTS):
        assert f"  {figure}  " in written.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n\n.. figures: pair\n\n==") and text.endswith(
        "figures\n\nafter\n"
    )
    assert "old" not in text


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_the_figures_of_the_last_run(page: str) -> None:
    text = (environments.REPOSITORY / page).read_text(encoding="utf-8")
    assert report.BLOCK.search(text)
    assert report.fill(text, report.blocks(SHOWN)) == text, f"run: make figures ({page})"


def test_the_page_of_results_is_that_of_the_last_run(tmp_path: Path) -> None:
    text = (FOLDER / report.RESULTS).read_text(encoding="utf-8")
    assert report.results(SHOWN) == text, "run: make figures"
    report.draw(SHOWN, tmp_path / report.PLOT)
    drawn, shown = (folder / report.PLOT for folder in (tmp_path, FOLDER))
    assert drawn.read_bytes() == shown.read_bytes(), "run: make figures"


def test_a_workload_makes_every_table_that_is_shown(measured: Figures) -> None:
    assert [*SHOWN.tables] == [*measured.tables]


@pytest.mark.skipif(not FULL, reason="takes minutes: make test-all")
def test_every_peer_is_measured(tmp_path: Path) -> None:
    environments.environment("channels1-peers")
    python, path = environments.environment("channels4-peers"), tmp_path / "peers.json"
    workloads = ("pair", "roundtrip", "throughput", "broadcast", "recovery")
    done = run("benchmarks", *workloads, "--tiny", "--json", str(path), python=str(python))
    assert done.returncode == 0 and "failed" not in done.stderr, done.stdout + done.stderr
    figures = Figures.read([str(path)])
    if shutil.which("redis-server") is None:
        pytest.skip("lacking: redis-server")
    named = {row["layer"] for row in figures.rows("pair")}
    assert {name for name, one in CONTENDERS.items() if not one.floor} <= named, done.stdout
    for name, one in CONTENDERS.items():
        if not one.floor:
            assert figures.rows("pair", layer=name)[0]["pair"] > 0
        if not one.local:
            assert figures.rows("roundtrip", way="unpinned", layer=name)[0]["p50"] > 0
        if one.groups and not one.local:
            assert figures.rows("broadcast", layer=name)[0]["last"] > 0


def test_the_cost_of_a_whole_checksum_is_measured() -> None:
    done = run("benchmarks.checksums", "--tiny")
    assert done.returncode == 0, done.stderr
    sizes = ("100,000", "1,000,000", "10,000,000")
    rows = [row for row in map(str.split, done.stdout.splitlines()) if row and row[0] in sizes]
    assert [row[0] for row in rows] == [*sizes], done.stdout
    assert all(float(figure.replace(",", "")) > 0 for row in rows for figure in row)


def test_bursts_find_room_in_their_own_process_and_where_they_wait() -> None:
    done = run("benchmarks.bursts")
    assert done.returncode == 0, done.stderr
    own, busy, receives, waits = (line.split()[-3:] for line in done.stdout.splitlines()[1:])
    assert own == ["150", "150", "0"]
    assert busy == ["150", "100", "50"]
    assert int(receives[1].replace(",", "")) >= 100
    assert waits == ["15,000", "15,000", "0"]


def test_help_names_every_workload() -> None:
    shown = run("benchmarks", "--help").stdout
    assert all(f"\n  {name} " in shown for name in WORKLOADS)


def test_an_unknown_workload_is_refused() -> None:
    done = run("benchmarks", "pear")
    assert done.returncode == 2 and "no workload 'pear'" in done.stderr


def test_what_is_not_installed_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = run("benchmarks", "recovery", "--tiny", "--layer=channels_redis")
    assert done.returncode == 0
    assert "channels_redis is left out. redis-server is not installed" in done.stderr


def test_a_blocking_layer_cannot_wait_for_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="waited for an event loop"):
        run_to_end(asyncio.sleep(0))
