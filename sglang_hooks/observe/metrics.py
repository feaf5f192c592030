"""Prometheus metrics of the extension, on SGLang's own /metrics.

SGLang runs prometheus_client in multiprocess mode: its HTTP process serves what the other processes wrote into the
files of PROMETHEUS_MULTIPROC_DIR. So a scheduler process has to write its values; it does so at most once a second,
from the section `marconi` of /server_info, with SGLang's own labels (model_name, tp_rank, …).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from marconi_ext.config import CheckpointKind

from ..stats import EVICTION_REASONS, LOSS_CAUSES

INTERVAL_S = 1.0

Samples = Iterator[tuple[tuple[str, ...], float]]
"""(values of the metric's own labels, value)"""


@dataclass(frozen=True)
class Metric:
    """One metric. name: as Prometheus shows it, so counters end in _total; read: its samples in a report."""

    name: str
    help: str
    read: Callable[[Mapping[str, Any]], Samples]
    labels: tuple[str, ...] = ()

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


def _one(*path: str) -> Callable[[Mapping[str, Any]], Samples]:
    """A number in the report."""

    def read(report: Any) -> Samples:
        for key in path:
            report = report[key]
        yield (), report

    return read


def _each(*path: str, at_least: tuple[str, ...] = ()) -> Callable[[Mapping[str, Any]], Samples]:
    """A mapping from label to number; labels of `at_least` are there from the start, so that rate() sees the first."""

    def read(report: Any) -> Samples:
        for key in path:
            report = report[key]
        for label in dict.fromkeys((*at_least, *report)):
            yield (label,), report.get(label, 0)

    return read


def _evictions(report: Mapping[str, Any]) -> Samples:
    counts = {(kind.value, reason): 0 for kind in CheckpointKind for reason in EVICTION_REASONS}
    counts |= {(row["kind"], row["reason"]): row["states"] for row in report["stats"]["evictions"]}
    yield from counts.items()


def _slots(report: Mapping[str, Any]) -> Samples:
    for owner in ("free", "cached", "held"):
        yield (owner,), report["slots"][owner]
    yield ("running",), report["slots"]["unaccounted"]


def _info(report: Mapping[str, Any]) -> Samples:
    yield (report["version"], report["policy"]["name"], ",".join(report["config"]["checkpoints"])), 1


def _pinned(report: Mapping[str, Any]) -> Samples:
    yield ("held",), report["pins"]["states"]
    yield ("budget",), report["pins"]["budget"]["states"]


_KINDS = tuple(kind.value for kind in CheckpointKind)

METRICS = (
    Metric(
        "marconi_info",
        "1: the extension is live in this process.",
        _info,
        ("version", "policy", "checkpoints"),
    ),
    Metric("marconi_requests_total", "Requests that began their prefill.", _one("stats", "requests")),
    Metric("marconi_prompt_tokens_total", "Prompt tokens of those requests.", _one("stats", "prompt_tokens")),
    Metric("marconi_hit_tokens_total", "Prompt tokens that skipped prefill.", _one("stats", "hit_tokens")),
    Metric("marconi_kv_hit_tokens_total", "Prompt tokens with cached KV.", _one("stats", "kv_tokens")),
    Metric(
        "marconi_lost_tokens_total",
        "Prompt tokens prefilled again for want of a recurrent state, by cause (state-limited loss).",
        _each("stats", "lost_tokens", at_least=LOSS_CAUSES),
        ("cause",),
    ),
    Metric(
        "marconi_states",
        "Recurrent states in the prefix cache, by kind.",
        _each("stats", "states", at_least=_KINDS),
        ("kind",),
    ),
    Metric("marconi_state_slots", "Slots of the state pool, by owner.", _slots, ("owner",)),
    Metric("marconi_state_slots_capacity", "Slots of the state pool, all.", _one("slots", "pool")),
    Metric(
        "marconi_saved_states_total",
        "States that entered the prefix cache, by kind.",
        _each("stats", "saves", at_least=_KINDS),
        ("kind",),
    ),
    Metric(
        "marconi_returned_states_total",
        "States that came back from the host tier, by kind.",
        _each("stats", "returns", at_least=_KINDS),
        ("kind",),
    ),
    Metric(
        "marconi_refused_states_total",
        "States wanted and not saved: no slot to spare, or not worth one.",
        _each("stats", "refusals", at_least=_KINDS),
        ("kind",),
    ),
    Metric(
        "marconi_evicted_states_total",
        "States that left the prefix cache, or the device for the host, by kind and reason.",
        _evictions,
        ("kind", "reason"),
    ),
    Metric(
        "marconi_planning_failures_total",
        "Checkpoints planned whose state was not written or not published.",
        _each("stats", "planning_failures", at_least=("not-written",)),
        ("reason",),
    ),
    Metric(
        "marconi_table_differences",
        "States and locks of which the policy's table says other than the tree: never anything but 0.",
        _one("table", "differences"),
    ),
    Metric(
        "marconi_wrong_sums_total",
        "Requests whose reused, lost and new tokens didn't make up their prompt.",
        _one("stats", "wrong_sums"),
    ),
    Metric("marconi_tuning_rounds_total", "Tunings that took effect.", _one("stats", "tuning", "rounds")),
    Metric(
        "marconi_tuning_seconds_total",
        "Background time of those tunings.",
        _one("stats", "tuning", "seconds"),
    ),
    Metric(
        "marconi_tuner_lag_requests",
        "Requests served between the last one that the latest tuning knew and the moment it took effect.",
        _one("stats", "tuning", "requests_behind"),
    ),
    Metric(
        "marconi_requests_since_tuning",
        "Requests served since the latest tuning took effect, or since the start.",
        _one("stats", "tuning", "requests_since"),
    ),
    Metric("marconi_pinned_states", "States that operators have pinned, and may pin.", _pinned, ("what",)),
    Metric(
        "marconi_pins_ended_total",
        "Pins that ended, by reason; evicted: a running request could get no memory else.",
        _each("pins", "ended"),
        ("reason",),
    ),
    Metric(
        "marconi_tenant_states",
        "States by tenant with a quota; *: all others together.",
        _each("tenants"),
        ("tenant",),
    ),
    Metric(
        "marconi_parameter",
        "Parameters of the policy that are in force.",
        _each("policy", "parameters"),
        ("parameter",),
    ),
)


class MetricsPublisher:
    """Writes a report's numbers into prometheus_client's metrics.

    labels: SGLang's own labels and their values in this process
    counter_class, gauge_class: prometheus_client's, or what stands in for them
    report: makes the report, as /server_info has it
    """

    def __init__(
        self,
        labels: Mapping[str, Any],
        counter_class: Any,
        gauge_class: Any,
        report: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._report = report
        self._labels = dict(labels)
        self._due_s = 0.0
        self._published: dict[tuple[str, tuple[str, ...]], float] = {}
        self._instruments = {}
        for metric in METRICS:
            names = (*self._labels, *metric.labels)
            if metric.is_counter:
                instrument = counter_class(metric.name, metric.help, labelnames=names)
            else:
                instrument = gauge_class(
                    metric.name, metric.help, labelnames=names, multiprocess_mode="mostrecent"
                )
            self._instruments[metric.name] = instrument

    def publish_if_due(self) -> None:
        """Publish, unless that was done less than a second ago. Called after every batch and while idle."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + INTERVAL_S
            self.publish(self._report())

    def publish(self, values: Mapping[str, Any]) -> None:
        """Write all metrics; counters by what they grew."""
        for metric in METRICS:
            for own, value in metric.read(values):
                labels = {**self._labels, **dict(zip(metric.labels, own, strict=True))}
                instrument = self._instruments[metric.name].labels(**labels)
                if metric.is_counter:
                    before = self._published.get((metric.name, own), 0)
                    self._published[metric.name, own] = value
                    instrument.inc(value - before)
                else:
                    instrument.set(value)


def start_publishing(reporter: Any, report: Callable[[], Mapping[str, Any]]) -> MetricsPublisher | None:
    """Export metrics from this scheduler process; None where SGLang exports none of its own from there.

    reporter: SGLang's, of this scheduler; report: as of `MetricsPublisher`
    """
    if not reporter.current_scheduler_metrics_enabled:
        return None
    # Imported here: the library picks its storage at import, by a variable that SGLang sets first.
    from prometheus_client import Counter, Gauge

    collector = reporter.metrics_collector
    counter, gauge = collector._counter_cls or Counter, collector._gauge_cls or Gauge
    publisher = MetricsPublisher(collector.labels, counter, gauge, report)
    publisher.publish_if_due()
    return publisher
