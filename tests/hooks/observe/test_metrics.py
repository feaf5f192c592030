"""What is published is what the report says, counters grow by what was added, names are Prometheus's."""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from marconi_ext.config import MarconiConfig
from sglang_hooks.observe import metrics
from sglang_hooks.observe.metrics import METRICS, MetricsPublisher
from sglang_hooks.observe.tree_dump import TreeDumps
from sglang_hooks.stats import CacheStats
from sglang_hooks.status import report

LABELS = {"model_name": "toy", "tp_rank": 0}


class OneServer:
    """A process with counted events and a publisher, and what a scrape of it gives."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.census = {"pool": 10, "free": 6, "cached": 2, "held": 1, "unaccounted": 1}
        self.differences = 0
        self.pins = {"budget": {"states": 2}, "states": 1, "ended": {"expired": 0}}
        self.state: Any = SimpleNamespace(
            config=MarconiConfig(),
            ledger=SimpleNamespace(counters={}),
            cache=SimpleNamespace(
                slot_census=lambda: dict(self.census),
                kv_census=dict,
                policy_facts=self.policy,
                operator_facts=lambda: {"pins": self.pins, "tenants": {}},
                census=SimpleNamespace(totals=lambda: {"differences": self.differences}),
            ),
            stats=CacheStats(),
            tree_dumps=TreeDumps(),
            runs=None,
        )
        self.publisher = MetricsPublisher(
            LABELS,
            partial(Counter, registry=self.registry),
            partial(Gauge, registry=self.registry),
            lambda: report(self.state),
        )

    def policy(self) -> dict[str, Any]:
        return {"name": "marconi", "parameters": self.state.stats.parameters}

    def publish(self) -> None:
        self.publisher.publish(report(self.state))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "toy", "tp_rank": "0", **labels})


def test_metrics_are_there_before_the_first_request() -> None:
    server = OneServer()
    server.publish()
    found = {sample.name for family in server.registry.collect() for sample in family.samples}
    assert {metric.name for metric in METRICS} - found == {
        "marconi_parameter",
        "marconi_tenant_states",
    }
    assert server.value("marconi_pinned_states", what="budget") == 2
    assert server.value("marconi_lost_tokens_total", cause="evicted") == 0
    assert server.value("marconi_evicted_states_total", kind="branch", reason="pool-full") == 0


def test_counters_grow_by_what_was_added_and_gauges_follow() -> None:
    server = OneServer()
    stats = server.state.stats
    for _ in range(2):
        stats.served(100, 60, 70, {"evicted": 10})
        stats.saved("branch")
        stats.evicted("branch", "displaced-by-host")
        stats.tuned({"alpha": 0.5}, 0.1, 3)
        server.publish()
        server.publish()  # nothing new
    assert server.value("marconi_prompt_tokens_total") == 200
    assert server.value("marconi_hit_tokens_total") == 120
    assert server.value("marconi_kv_hit_tokens_total") == 140
    assert server.value("marconi_lost_tokens_total", cause="evicted") == 20
    assert server.value("marconi_saved_states_total", kind="branch") == 2
    assert server.value("marconi_evicted_states_total", kind="branch", reason="displaced-by-host") == 2
    assert server.value("marconi_states", kind="branch") == 0
    assert server.value("marconi_tuning_rounds_total") == 2
    assert server.value("marconi_parameter", parameter="alpha") == 0.5
    assert server.value("marconi_state_slots", owner="running") == 1
    server.census["free"], server.census["unaccounted"], server.differences = 7, 0, 3
    server.publish()
    assert server.value("marconi_table_differences") == 3
    assert server.value("marconi_state_slots", owner="free") == 7


def test_publishing_waits_for_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    server = OneServer()
    now_s = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now_s)
    server.publisher.publish_if_due()
    server.state.stats.served(5, 0, 0, {})
    now_s += 0.5
    server.publisher.publish_if_due()
    assert server.value("marconi_requests_total") == 0
    now_s += 0.6
    server.publisher.publish_if_due()
    assert server.value("marconi_requests_total") == 1


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_and_help(metric: metrics.Metric) -> None:
    assert re.fullmatch(r"marconi_[a-z_]+", metric.name) and metric.help.endswith(".")
