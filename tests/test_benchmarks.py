"""The benchmarks run, and the pages show what they measured.

Nothing here looks at a time: what is measured in the least possible number of repetitions says
nothing. The peers are measured only at full length, since that takes environments of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import environments

pytest.importorskip("matplotlib", reason="lacking: matplotlib")

from benchmarks import report
from benchmarks.figures import Figures
from benchmarks.layers.__main__ import WORKLOADS
from benchmarks.layers.contenders import CONTENDERS
from benchmarks.plots import PLOTS

PAGES = (
    "README.rst",
    "docs/performance.rst",
    "docs/wsgi.rst",
    "docs/howto/several-machines.rst",
)
FIGURES = [
    f"docs/benchmarks/{name}.json" for name in ("layers", "profile", "wakeups", "wsgi", "remote")
]
FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
OURS = ("asgi_ipc-blocking", "asgi_ipc-asyncio")
NEXT_TO_THEM = ("InMemory", "FIFO-blocking", "FIFO-asyncio")

# What a workload measures of our layers: a table, and a column that must have a figure.
MEASURED = {
    "pair": "ratio",
    "messages": "flatness",
    "channels": "flatness",
    "groups": "flatness",
    "group sends": "flatness",
    "sizes": "ratio",
    "roundtrip": "pairs",
    "pace": "p50",
    "throughput": "rate",
    "scaling": "rate",
    "broadcast": "last",
    "churn": "join",
    "idle": "spent",
    "memory": "busy",
    "attach": "attach",
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
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All workloads of our layers, as short as can be, as JSON."""
    environments.environment("channels1")  # built, or a skip
    path = tmp_path_factory.mktemp("benchmarks") / "layers.json"
    layers = [f"--layer={name}" for name in (*OURS, *NEXT_TO_THEM)]
    done = run("benchmarks.layers", "--tiny", "--json", str(path), *layers)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.mark.parametrize("table", MEASURED)
@pytest.mark.parametrize("layer", OURS)
def test_every_workload_measures_both_facades(measured: Path, table: str, layer: str) -> None:
    rows = Figures.read([str(measured)]).rows(table, layer=layer)
    assert rows and all(row[MEASURED[table]] is not None for row in rows), rows


def test_real_servers_are_measured(measured: Path) -> None:
    figures = Figures.read([str(measured)])
    assert figures.get("http", "rate", layer=OURS[0], clients=8) > 0
    assert figures.get("websocket", "rate", layer=OURS[1]) > 0


def test_the_wsgi_adapters_are_measured(tmp_path: Path) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("lacking: wrk (Debian: apt-get install wrk)")
    pytest.importorskip("gunicorn", reason="lacking: gunicorn")
    path = tmp_path / "wsgi.json"
    done = run("benchmarks.wsgi", "--tiny", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Figures.read([str(path)]).rows("wsgi")
    assert rows and all(row["direct rate"] > 0 and row["layer rate"] > 0 for row in rows)


def test_nothing_was_lost_doubled_or_reordered(measured: Path) -> None:
    figures = Figures.read([str(measured)])
    for row in figures.rows("throughput") + figures.rows("scaling"):
        if row["layer"] in OURS:
            assert (row["lost"], row["doubled"], row["disordered"]) == (0, 0, 0), row


def test_recovery_keeps_what_waited(measured: Path) -> None:
    for row in Figures.read([str(measured)]).rows("recovery"):
        assert row["left"] == row["messages"], row


def test_the_profile_finds_the_steps_of_both_calls(tmp_path: Path) -> None:
    done = run("benchmarks.profile", "--tiny", "--json", str(tmp_path / "profile.json"))
    if "is that allowed here?" in done.stderr:
        pytest.skip("lacking: permission to look into another process")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = Figures.read([str(tmp_path / "profile.json")])
    for contract in ("blocking", "asyncio"):
        for call, step in (("send", "Codec.encode"), ("receive", "Receiving.take_one")):
            assert figures.rows(f"profile-{contract}", call=call, what=step)
        shares = [row["share"] for row in figures.rows(f"profile-{contract}")]
        assert 50 < sum(shares) < 101
        assert figures.get("profile-lock", "held", layer=f"asgi_ipc-{contract}") > 0


def test_a_report_is_made_of_the_figures(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.rst"
    page.write_text("before\n\n.. figures: pair\n\nold\n.. end of figures\n\nafter\n")
    done = run("benchmarks.report", str(measured), "--into", str(tmp_path), "--fill", str(page))
    assert done.returncode == 0, done.stderr
    for plot in PLOTS:
        assert "<svg" in (tmp_path / f"{plot.__name__}.svg").read_text(encoding="utf-8")
    figure = format(figures_of(measured, "pair")[0]["pair"], ",.2f")
    for written in (page, tmp_path / report.RESULTS):
        assert f"  {figure}  " in written.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n\n.. figures: pair\n\n==") and text.endswith(
        "figures\n\nafter\n"
    )
    assert "old" not in text


def figures_of(path: Path, name: str) -> list[dict[str, Any]]:
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
    rows: list[dict[str, Any]] = next(table["rows"] for table in tables if table["name"] == name)
    return rows


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_the_figures_of_the_last_run(page: str) -> None:
    figures = Figures.read(str(environments.REPOSITORY / name) for name in FIGURES)
    text = (environments.REPOSITORY / page).read_text(encoding="utf-8")
    assert report.BLOCK.search(text)
    assert report.fill(text, report.blocks(figures)) == text, f"run: make figures ({page})"


def test_the_page_of_results_is_that_of_the_last_run() -> None:
    figures = Figures.read(str(environments.REPOSITORY / name) for name in FIGURES)
    folder = environments.REPOSITORY / "docs" / "benchmarks"
    plots = [f"{plot.__name__}.svg" for plot in PLOTS]
    text = (folder / report.RESULTS).read_text(encoding="utf-8")
    assert report.results(figures, plots) == text, "run: make figures"
    assert all((folder / name).exists() for name in plots)


def test_several_machines_are_measured_beside_channels_redis(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("lacking: redis-server")
    done = run("benchmarks.remote", "--tiny", "--json", str(tmp_path / "remote.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = Figures.read([str(tmp_path / "remote.json")])
    assert figures.get("remote-pair", "ratio", layer="local and remote, normal") > 0
    assert figures.get("remote-groups", "commands", layer="local and remote, core") > 0


@pytest.mark.skipif(not FULL, reason="takes minutes: make test-all")
def test_every_peer_is_measured(tmp_path: Path) -> None:
    environments.environment("channels1-peers")
    python, path = environments.environment("channels4-peers"), tmp_path / "peers.json"
    workloads = ("pair", "roundtrip", "throughput", "broadcast", "recovery")
    done = run("benchmarks.layers", *workloads, "--tiny", "--json", str(path), python=str(python))
    assert done.returncode == 0 and "failed" not in done.stderr, done.stdout + done.stderr
    figures = Figures.read([str(path)])
    if shutil.which("redis-server") is None:
        pytest.skip("lacking: redis-server")
    for name, one in CONTENDERS.items():
        if not one.floor:
            assert figures.get("pair", "pair", layer=name) > 0
        if not one.local:
            assert figures.get("roundtrip", "p50", way="unpinned", layer=name) > 0
        if one.groups and not one.local:
            assert figures.get("broadcast", "last", layer=name) > 0


def test_help_names_every_workload() -> None:
    shown = run("benchmarks.layers", "--help").stdout
    assert all(f"\n  {name} " in shown for name in WORKLOADS)


def test_an_unknown_workload_is_refused() -> None:
    done = run("benchmarks.layers", "pear")
    assert done.returncode == 2 and "no workload 'pear'" in done.stderr


def test_what_is_not_installed_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = run("benchmarks.layers", "attach", "--tiny", "--layer=channels_redis")
    assert done.returncode == 0
    assert "channels_redis is left out. redis-server is not installed" in done.stderr
