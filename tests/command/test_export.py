"""The exporter, scraped over HTTP, and the collector in a running program."""

from __future__ import annotations

import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="lacking: prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from asgi_ipc import IPCChannelLayer
from asgi_ipc.prometheus import OTHER, IPCCollector, folded, register

from ..environments import REPOSITORY, child_environment
from ..processes import Process, free_port, running
from ..waiting import LIVENESS
from .conftest import Live, Run

Samples = dict[tuple[str, ...], float]


def samples(text: str, prefix: str) -> Samples:
    """The samples of one layer: (name, other labels…) → value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("prefix") == prefix:
                found[(sample.name, *labels.values())] = sample.value
    return found


def scraped(registry: CollectorRegistry, prefix: str) -> Samples:
    return samples(generate_latest(registry).decode(), prefix)


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    port = free_port()
    with running(
        [sys.executable, "-m", "asgi_ipc", "export", "--port", str(port)],
        log=tmp_path / "export.log",
        environment=child_environment(),
    ) as process:
        process.wait_for_port(port)
        yield process, f"http://127.0.0.1:{port}/metrics"


def test_a_scrape_of_a_live_layer(live: Live, exporter: tuple[Process, str]) -> None:
    process, url = exporter
    with urllib.request.urlopen(url, timeout=LIVENESS) as answer:
        found = samples(answer.read().decode(), live.prefix)
    queue = live.mine.partition(".")[0] + ".*!"
    assert found[("asgi_ipc_up",)] == 1
    assert found[("asgi_ipc_messages_pending",)] == 8
    assert found[("asgi_ipc_processes",)] == 2
    assert found[("asgi_ipc_messages_sent_total",)] == 8
    assert found[("asgi_ipc_messages_refused_total",)] == 1
    assert found[("asgi_ipc_messages_dropped_total", "expired")] == 0
    assert 0 < found[("asgi_ipc_memory_in_use_bytes",)] < found[("asgi_ipc_memory_limit_bytes",)]
    assert found[("asgi_ipc_channel_fill_ratio", "full")] == 1
    assert found[("asgi_ipc_channel_fill_ratio", "backlog")] == pytest.approx(0.6)
    assert found[("asgi_ipc_channel_messages_pending", "full")] == 5
    assert found[("asgi_ipc_channel_messages_sent_total", "full")] == 5
    assert found[("asgi_ipc_channel_messages_refused_total", "full")] == 1
    assert found[("asgi_ipc_channel_queues", queue)] == 1
    process._child.send_signal(signal.SIGTERM)
    assert process.wait_for_end() == 0


def test_a_port_that_is_taken_is_said(exporter: tuple[Process, str], run: Run) -> None:
    port = exporter[1].rpartition(":")[2].partition("/")[0]
    ran = run("export", "--port", port)
    assert ran.code == 3 and f"port {port}" in ran.errors


def test_a_layer_that_is_not_there_yet_is_down(prefix: str) -> None:
    registry = CollectorRegistry()
    register(prefix, registry=registry)
    assert scraped(registry, prefix) == {("asgi_ipc_up",): 0}
    IPCChannelLayer(prefix).send("a", {})
    assert scraped(registry, prefix)[("asgi_ipc_up",)] == 1


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("chat.send", "chat.send"),
        ("specific.4f1c2a!", "specific.*!"),
        ("http.response!", "http.*!"),
        ("mine!", "mine!"),
        ("http.request.body?d41d8", "http.request.body?*"),
    ],
)
def test_names_that_processes_make_up_are_folded(name: str, label: str) -> None:
    assert folded(name) == label


def test_labels_do_not_explode(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    for number in range(50):
        layer.send(f"specific.{number:016x}!abc", {})
        layer.send(f"reply?{number}", {})
        layer.send(f"normal.{number}", {})
    registry = CollectorRegistry()
    registry.register(IPCCollector([prefix], max_channels=10))
    found = scraped(registry, prefix)
    pending = {
        key[1]: value
        for key, value in found.items()
        if key[0] == "asgi_ipc_channel_messages_pending"
    }
    assert len(pending) == 13 and sum(pending.values()) == 150
    assert pending["specific.*!"] == pending["reply?*"] == 50 and pending[OTHER] == 40


def test_folded_counters_do_not_fall_when_channels_go(prefix: str) -> None:
    """Otherwise Prometheus would see a restart and count everything again."""
    layer = IPCChannelLayer(prefix)
    registry = CollectorRegistry()
    registry.register(IPCCollector([prefix]))
    key = ("asgi_ipc_channel_messages_sent_total", "specific.*!")
    for number in range(4):
        layer.send(f"specific.{number}!x", {})
    assert scraped(registry, prefix)[key] == 4
    layer.flush()
    layer.send("specific.9!x", {})
    found = scraped(registry, prefix)
    assert found[key] == 5
    assert found[("asgi_ipc_channel_queues", "specific.*!")] == 1
    assert found[("asgi_ipc_messages_sent_total",)] == 5


def test_every_metric_is_documented() -> None:
    from asgi_ipc.prometheus import _FAMILIES

    page = (REPOSITORY / "docs" / "command.rst").read_text(encoding="utf-8")
    for name, (kind, _, _) in _FAMILIES.items():
        total = "_total" if "Counter" in kind.__name__ else ""
        assert f"``asgi_ipc_{name}{total}``" in page, name
