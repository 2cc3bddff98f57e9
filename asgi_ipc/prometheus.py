"""Metrics for Prometheus, through its official client library: the extra ``prometheus``.

`register()` adds a collector to the registry of a running program; ``asgi-ipc export`` serves one
on its own. A scrape reads a snapshot: it must not attach or take a lock.

The number of labels is limited, so channels are folded. For process-specific channels the label
omits the process (``specific.4f1c…!`` becomes ``specific.*!``), for single-reader channels
everything after the ``?`` (``reply?9d2e…`` becomes ``reply?*``). After `max_channels` names, all
other channels are counted together as ``(other)``.
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
from .store import layout as at

OTHER = "(other)"

_Counts = tuple[int, int, int]  # sent, refused, dropped


def folded(name: str) -> str:
    """The label of a channel: its name without the part that each process or reader makes up."""
    if "?" in name:
        return name.partition("?")[0] + "?*"
    if "!" in name:
        kind, dot, _ = name.partition("!")[0].rpartition(".")
        return f"{kind}.*!" if dot else f"{name.partition('!')[0]}!"
    return name


class IPCCollector(Collector):
    """Reads layers at each scrape: those of `prefixes`, or by default all that exist then."""

    def __init__(self, prefixes: Iterable[str] | None = None, max_channels: int = 200) -> None:
        """`max_channels`: number of labels for the channels of one layer. Raises InvalidOption for
        an invalid prefix. A layer that does not exist yet has ``asgi_ipc_up`` 0."""
        self._prefixes = None if prefixes is None else [Paths(name).prefix for name in prefixes]
        self._max_channels = max_channels
        self._layers: dict[str, _Layer] = {}
        # Scrapes may overlap, also in one thread by a signal handler, and each updates the sums.
        self._lock = threading.RLock()

    def describe(self) -> list[Metric]:
        return []  # so that registering reads no layer

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
            _add_stats(metrics, snapshot.stats(), snapshot.header[at.S_SEQ])
            layer.add(metrics, prefix, snapshot)
        return metrics


class _Layer:
    """What to remember of a layer between scrapes, so that folded counters never fall: rows of
    channels come and go, and each new one counts from 0."""

    def __init__(self, max_channels: int) -> None:
        self._max_channels = max_channels
        # Plain and folded names are kept apart: many plain ones must not push out folded ones.
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
            metrics.add("channel_messages_pending", names, sum(one.pending for one in found))
            metrics.add("channel_fill_ratio", names, max(one.fill for one in found))
            metrics.add("channel_oldest_message_age_seconds", names, max(c.oldest for c in found))
            metrics.add("channel_queues", names, len(found))
        for label, (sent, refused, dropped) in self._sums.items():
            metrics.add("channel_messages_sent", (prefix, label), sent)
            metrics.add("channel_messages_refused", (prefix, label), refused)
            metrics.add("channel_messages_dropped", (prefix, label), dropped)

    def _count(self, snapshot: Snapshot) -> None:
        seen: dict[tuple[int, int], _Counts] = {}
        for row, words in snapshot.queues.items():
            key = row, words[at.R_GENERATION]
            dropped = sum(words[at.Q_DROPS : at.Q_DROPS + len(at.DROP_REASONS)])
            counts = seen[key] = words[at.Q_SENT], words[at.Q_REFUSED], dropped
            before = self._seen.get(key, (0, 0, 0))
            sums = self._sums.setdefault(self._label(snapshot.name(row)), [0, 0, 0])
            for place in range(3):
                sums[place] += max(counts[place] - before[place], 0)
        self._seen = seen


class _Metrics:
    """The families of one scrape, each created with its first value."""

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
    "up": (GaugeMetricFamily, "1 if the layer exists and can be read, else 0.", _LAYER),
    "messages_pending": (GaugeMetricFamily, "Messages that wait in channels.", _LAYER),
    "oldest_message_age_seconds": (
        GaugeMetricFamily,
        "How long the oldest pending message has waited.",
        _LAYER,
    ),
    "messages_sent": (CounterMetricFamily, "Messages accepted.", _LAYER),
    "messages_refused": (
        CounterMetricFamily,
        "Messages refused because the channel or the memory was full.",
        _LAYER,
    ),
    "messages_dropped": (
        CounterMetricFamily,
        "Messages dropped, by reason.",
        ("prefix", "reason"),
    ),
    "memory_in_use_bytes": (GaugeMetricFamily, "Memory that messages use.", _LAYER),
    "memory_high_water_bytes": (
        GaugeMetricFamily,
        "The most memory that messages have used since the layer was created.",
        _LAYER,
    ),
    "memory_limit_bytes": (GaugeMetricFamily, "Memory that messages may use.", _LAYER),
    "memory_reserved_bytes": (
        GaugeMetricFamily,
        "Memory of the machine that the segment has reserved.",
        _LAYER,
    ),
    "channels": (GaugeMetricFamily, "Channels in use.", _LAYER),
    "groups": (GaugeMetricFamily, "Groups with members.", _LAYER),
    "memberships": (GaugeMetricFamily, "Memberships in groups.", _LAYER),
    "memberships_limit": (GaugeMetricFamily, "Memberships that fit into group_memory.", _LAYER),
    "memberships_abandoned": (
        CounterMetricFamily,
        "Memberships ended because nothing was received on their channels any more.",
        _LAYER,
    ),
    "processes": (GaugeMetricFamily, "Processes attached.", _LAYER),
    "lock_waits": (CounterMetricFamily, "Calls that had to sleep for the lock.", _LAYER),
    "lock_wait_seconds": (
        CounterMetricFamily,
        "Total time that calls slept for the lock.",
        _LAYER,
    ),
    "recoveries": (CounterMetricFamily, "Interrupted calls that were cleared up.", _LAYER),
    "channel_messages_pending": (
        GaugeMetricFamily,
        "Messages that wait in the channels.",
        _CHANNEL,
    ),
    "channel_fill_ratio": (
        GaugeMetricFamily,
        "How full the fullest channel is; 1 is at capacity.",
        _CHANNEL,
    ),
    "channel_oldest_message_age_seconds": (
        GaugeMetricFamily,
        "How long the oldest pending message of the channels has waited.",
        _CHANNEL,
    ),
    "channel_queues": (GaugeMetricFamily, "Channels with this label.", _CHANNEL),
    "channel_messages_sent": (CounterMetricFamily, "Messages accepted.", _CHANNEL),
    "channel_messages_refused": (
        CounterMetricFamily,
        "Messages refused because the channel was full.",
        _CHANNEL,
    ),
    "channel_messages_dropped": (CounterMetricFamily, "Messages dropped.", _CHANNEL),
}


def _add_stats(metrics: _Metrics, stats: Stats, sent: int) -> None:
    labels = (stats.prefix,)
    for name, value in (
        ("messages_pending", stats.pending),
        ("oldest_message_age_seconds", stats.oldest),
        ("messages_sent", sent),  # unlike stats.sent, a flush does not reset it
        ("messages_refused", stats.refused),
        ("memory_in_use_bytes", stats.memory.in_use),
        ("memory_high_water_bytes", stats.memory.high_water),
        ("memory_limit_bytes", stats.memory.limit),
        ("memory_reserved_bytes", stats.memory.reserved),
        ("channels", stats.channels),
        ("groups", stats.groups),
        ("memberships", stats.memberships),
        ("memberships_limit", stats.memberships_limit),
        ("memberships_abandoned", stats.abandoned),
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
    """Add a layer to the metrics of this program. Call it in one process of a site: all processes
    would export the same figures.

    Returns the collector, for ``registry.unregister``. Raises InvalidOption.
    """
    collector = IPCCollector([prefix], max_channels)
    registry.register(collector)
    return collector
