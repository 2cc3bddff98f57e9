"""Metrics for Prometheus, in its official client library: the extra ``prometheus``.

`register()` enters a collector into the registry of a running program; ``asgi-ipc export`` serves
one by itself. A scrape reads a snapshot: it takes no lock and attaches to nothing.

Labels must not explode, so channels are folded. Of process-specific channels the name of the
process is left out (``specific.4f1c…!`` becomes ``specific.*!``), of single-reader ones all after
the ``?`` (``reply?9d2e…`` becomes ``reply?*``), and after `max_channels` names the others are
counted together as ``(other)``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from .errors import IPCError
from .inspection.snapshot import Snapshot
from .inspection.view import View
from .segment.paths import Paths, prefixes
from .statistics import Channel, Stats
from .store.layout import DROP_REASONS, Q_DROPS, Q_REFUSED, Q_SENT, R_GENERATION, S_SEQ

OTHER = "(other)"

_Counts = tuple[int, int, int]  # sent, refused, dropped


def _dropped(words: memoryview[int]) -> int:
    return sum(words[Q_DROPS : Q_DROPS + len(DROP_REASONS)])


def folded(name: str) -> str:
    """The label of a channel: its name, without the part that each process or reader makes up."""
    if "?" in name:
        return name.partition("?")[0] + "?*"
    if "!" in name:
        kind, dot, _ = name.partition("!")[0].rpartition(".")
        return f"{kind}.*!" if dot else f"{name.partition('!')[0]}!"
    return name


class IPCCollector(Collector):
    """Reads layers whenever it is scraped: those named, or all that there are by then."""

    def __init__(self, prefixes: Iterable[str] | None = None, max_channels: int = 200) -> None:
        """`max_channels`: different labels for channels of one layer. Raises InvalidOption for a
        prefix that cannot be. A layer that does not exist yet has ``asgi_ipc_up`` 0."""
        self._prefixes = None if prefixes is None else [Paths(name).prefix for name in prefixes]
        self._max_channels = max_channels
        self._layers: dict[str, _Layer] = {}
        self._lock = threading.Lock()  # scrapes may come at once, and each counts

    def describe(self) -> list[Metric]:
        return []  # so that registering does not read

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            return iter(self._collect().families.values())

    def _collect(self) -> _Metrics:
        metrics = _Metrics()
        for prefix in prefixes() if self._prefixes is None else self._prefixes:
            try:
                snapshot = Snapshot(View(prefix))
            except (IPCError, OSError):
                metrics.add("up", (prefix,), 0)
                continue
            layer = self._layers.setdefault(prefix, _Layer(self._max_channels))
            metrics.add("up", (prefix,), 1)
            _add_stats(metrics, snapshot.stats(), snapshot.header[S_SEQ])
            layer.add(metrics, prefix, snapshot)
        return metrics


class _Layer:
    """What has to be remembered of a layer between scrapes, so that folded counters never fall:
    rows of channels come and go, and are counted from nothing each time."""

    def __init__(self, max_channels: int) -> None:
        self._max_channels = max_channels
        # Plain names and folded ones apart: many of the former must not push out the latter.
        self._labels: tuple[set[str], set[str]] = (set(), set())
        self._seen: dict[tuple[int, int], _Counts] = {}  # row and generation → its counts
        self._sums: dict[str, list[int]] = {}

    def _label(self, name: str) -> str:
        label = folded(name)
        known = self._labels[label != name]
        if label not in known:
            if len(known) >= self._max_channels:
                return OTHER
            known.add(label)
        return label

    def add(self, metrics: _Metrics, prefix: str, snapshot: Snapshot) -> None:
        channels: dict[str, list[Channel]] = {}
        for channel in snapshot.channels():
            channels.setdefault(self._label(channel.name), []).append(channel)
        self._count(snapshot)
        for label, found in channels.items():
            names = (prefix, label)
            metrics.add("channel_messages", names, sum(one.messages for one in found))
            metrics.add("channel_fill_ratio", names, max(one.fill for one in found))
            metrics.add("channel_oldest_message_age_seconds", names, max(c.oldest for c in found))
            metrics.add("channel_queues", names, len(found))
        for label, (sent, refused, dropped) in self._sums.items():
            metrics.add("channel_messages_sent", (prefix, label), sent)
            metrics.add("channel_refused", (prefix, label), refused)
            metrics.add("channel_messages_dropped", (prefix, label), dropped)

    def _count(self, snapshot: Snapshot) -> None:
        seen: dict[tuple[int, int], _Counts] = {}
        for row, words in snapshot.queues.items():
            key = row, words[R_GENERATION]
            counts = seen[key] = words[Q_SENT], words[Q_REFUSED], _dropped(words)
            before = self._seen.get(key, (0, 0, 0))
            sums = self._sums.setdefault(self._label(snapshot.name(row)), [0, 0, 0])
            for place in range(3):
                sums[place] += max(counts[place] - before[place], 0)
        self._seen = seen


class _Metrics:
    """The families of one scrape, each with its help, made when the first value comes."""

    def __init__(self) -> None:
        self.families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}

    def add(self, name: str, labels: tuple[str, ...], value: float) -> None:
        family = self.families.get(name)
        if family is None:
            kind, text, names = _FAMILIES[name]
            family = self.families[name] = kind(f"asgi_ipc_{name}", text, labels=names)
        family.add_metric(labels, value)


_LAYER = ("prefix",)
_CHANNEL = ("prefix", "channel")
_FAMILIES: dict[
    str, tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, tuple[str, ...]]
] = {
    "up": (GaugeMetricFamily, "Whether the layer is there and can be read.", _LAYER),
    "messages": (GaugeMetricFamily, "Messages that wait.", _LAYER),
    "oldest_message_age_seconds": (
        GaugeMetricFamily,
        "How long the oldest message has been waiting.",
        _LAYER,
    ),
    "messages_sent": (CounterMetricFamily, "Messages accepted.", _LAYER),
    "refused": (CounterMetricFamily, "ChannelFull raised by sends.", _LAYER),
    "messages_dropped": (
        CounterMetricFamily,
        "Messages dropped, by reason.",
        ("prefix", "reason"),
    ),
    "memory_in_use_bytes": (GaugeMetricFamily, "Memory that messages take.", _LAYER),
    "memory_high_water_bytes": (
        GaugeMetricFamily,
        "The most memory that messages took since the layer was made.",
        _LAYER,
    ),
    "memory_limit_bytes": (GaugeMetricFamily, "Memory that messages may take.", _LAYER),
    "memory_reserved_bytes": (
        GaugeMetricFamily,
        "Memory that the segment has taken from the machine.",
        _LAYER,
    ),
    "channels": (GaugeMetricFamily, "Channels that are in use.", _LAYER),
    "groups": (GaugeMetricFamily, "Groups that have members.", _LAYER),
    "memberships": (GaugeMetricFamily, "Memberships of groups.", _LAYER),
    "memberships_limit": (GaugeMetricFamily, "Memberships that there is room for.", _LAYER),
    "processes": (GaugeMetricFamily, "Processes that are attached.", _LAYER),
    "lock_waits": (CounterMetricFamily, "Calls that had to sleep for the lock.", _LAYER),
    "lock_wait_seconds": (
        CounterMetricFamily,
        "Time that calls slept for the lock, together.",
        _LAYER,
    ),
    "recoveries": (
        CounterMetricFamily,
        "Times that something interrupted was put in order.",
        _LAYER,
    ),
    "channel_messages": (GaugeMetricFamily, "Messages that wait in the channels.", _CHANNEL),
    "channel_fill_ratio": (
        GaugeMetricFamily,
        "How full the fullest of the channels is: 1 is at capacity.",
        _CHANNEL,
    ),
    "channel_oldest_message_age_seconds": (
        GaugeMetricFamily,
        "How long the oldest message of the channels has been waiting.",
        _CHANNEL,
    ),
    "channel_queues": (GaugeMetricFamily, "Channels behind this label.", _CHANNEL),
    "channel_messages_sent": (CounterMetricFamily, "Messages accepted.", _CHANNEL),
    "channel_refused": (CounterMetricFamily, "ChannelFull raised for the channels.", _CHANNEL),
    "channel_messages_dropped": (
        CounterMetricFamily,
        "Messages of the channels that were dropped.",
        _CHANNEL,
    ),
}


def _add_stats(metrics: _Metrics, stats: Stats, sent: int) -> None:
    labels = (stats.prefix,)
    for name, value in (
        ("messages", stats.messages),
        ("oldest_message_age_seconds", stats.oldest),
        ("messages_sent", sent),  # which a flush does not set back
        ("refused", stats.refused),
        ("memory_in_use_bytes", stats.memory.in_use),
        ("memory_high_water_bytes", stats.memory.high_water),
        ("memory_limit_bytes", stats.memory.limit),
        ("memory_reserved_bytes", stats.memory.reserved),
        ("channels", stats.channels),
        ("groups", stats.groups),
        ("memberships", stats.memberships),
        ("memberships_limit", stats.memberships_limit),
        ("processes", stats.processes),
        ("lock_waits", stats.lock.waits),
        ("lock_wait_seconds", stats.lock.waited),
        ("recoveries", stats.recoveries),
    ):
        metrics.add(name, labels, value)
    for reason, count in stats.dropped.items():
        metrics.add("messages_dropped", (stats.prefix, reason), count)


def register(
    prefix: str = "asgi",
    *,
    registry: CollectorRegistry = REGISTRY,
    max_channels: int = 200,
) -> IPCCollector:
    """Show a layer among the metrics of this program. Call it in one process of a site: all would
    show the same.

    Returns the collector, which ``registry.unregister`` takes. Raises InvalidOption.
    """
    collector = IPCCollector([prefix], max_channels)
    registry.register(collector)
    return collector
