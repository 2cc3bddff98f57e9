"""bench: it measures, and its verdict follows from what it measured."""

from __future__ import annotations

import glob

import pytest
from click.testing import CliRunner

from asgi_ipc.command import bench as bench_module
from asgi_ipc.command.cli import cli

from .conftest import Run


def _segments() -> set[str]:
    return set(glob.glob("/dev/shm/asgi_ipc.bench-*"))


def test_it_measures_beside_the_floor(run: Run) -> None:
    before = _segments()  # of other runs, which may have been killed
    ran = run("bench", "--seconds", "0.5", "--json")
    found = ran.json
    assert found["pair_us"] > 0 and found["messages_per_second"] > 0
    assert {trip["cores"] for trip in found["round_trips"]} <= {1, 2}
    for trip in found["round_trips"]:
        assert 0 < trip["floor_us"] and 0 < trip["layer_us"]
        over = max(trip["layer_us"] - trip["floor_us"], 0) / found["pair_us"]
        assert trip["pairs_over_floor"] == pytest.approx(over)
    well = all(trip["pairs_over_floor"] <= found["allowed"] for trip in found["round_trips"])
    assert (found["well"], ran.code) == (well, 0 if well else 1)
    assert _segments() <= before


@pytest.mark.parametrize(("over", "code"), [(3.0, 0), (1000.0, 1)])
def test_the_verdict(over: float, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trip = bench_module.RoundTrip(1, floor_us=10.0, layer_us=10.0 + over, pairs_over_floor=over)
    measured = bench_module.Measured(1.0, [trip], messages_per_second=1e5)
    monkeypatch.setattr(bench_module, "_measure", lambda prefix, seconds: measured)
    ran = CliRunner().invoke(cli, ["bench"])
    assert ran.exit_code == code
    assert ("as it should be" in ran.output) == (code == 0)


def test_a_layer_that_is_faster_than_a_fifo_is_not_so_many_pairs_below_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that spins does not wait for the kernel."""
    layer = iter([(30e-6, 12e-6)] * 2)
    monkeypatch.setattr(bench_module, "_pair", lambda layer, seconds: 5e-6)
    monkeypatch.setattr(bench_module, "_round_trips", lambda *arguments: next(layer))
    monkeypatch.setattr(bench_module, "_throughput", lambda *arguments: 1e5)
    ran = CliRunner().invoke(cli, ["bench"])
    assert "which is no more than the floor" in ran.output and "-" not in ran.output
    assert ran.exit_code == 0
