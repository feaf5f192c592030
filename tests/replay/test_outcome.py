"""Records and summaries of a run, worked by hand."""

import numpy as np

from marconi_ext.replay.client import Answer
from marconi_ext.replay.outcome import all_records, server_figures, summarise
from marconi_ext.replay.schedule import Item
from marconi_ext.replay.sender import Record, Run
from marconi_ext.results.folder import ServerSnapshot, Status
from marconi_ext.servers.server_watch import samples, section


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def answered(turn: int, prompt: np.ndarray, cached: int | None, counted: int | None = None) -> Record:
    at_s = 100.0 + 10 * turn
    answer = Answer(
        "ok",
        "",
        at_s,
        at_s + 2,
        at_s + 4,
        prompt_tokens=len(prompt) if counted is None else counted,
        cached_tokens=cached,
        output_ids=ids(7, 8),
        completion_tokens=2,
        chunk_s=(at_s + 2, at_s + 3),
        retries=turn,
        retry_s=0.5 * turn,
    )
    return Record("s", turn, prompt, answer, due_s=at_s - 1, ready_s=at_s - 0.5)


def run(*records: Record, left: int = 0) -> Run:
    items = [Item("s", 9 + number, 0.0, 1) for number in range(left)]
    return Run(list(records), items, began_s=100.0, most_open=2, loop_lag_s=[0.001], stopped=None)


def test_times_count_from_the_start_and_reuse_from_all_tokens() -> None:
    found = run(answered(0, ids(1, 2, 3), 0), answered(1, ids(1, 2, 3, 7, 9), 3), left=1)
    first, second, unsent = all_records(found, page_size=1)
    assert (second.due_s, second.ready_s, second.sent_s, second.end_s) == (9.0, 9.5, 10.0, 14.0)
    assert (second.ttft_s, second.itl_s, second.held_s, second.late_s) == (2.0, [1.0], 0.5, 1.0)
    assert (second.ideal_tokens, second.state_tokens, second.lost_tokens) == (4, 4, 1)
    assert (second.retries, second.retry_s, unsent.status) == (1, 0.5, Status.UNSENT)
    summary = summarise([first, second, unsent], found)
    assert (summary.requests, summary.answered, summary.retries) == (3, 2, 1)
    assert (summary.prompt_tokens, summary.cached_tokens, summary.ideal_tokens) == (8, 3, 4)
    assert (summary.hit_rate, summary.ideal_hit_rate) == (37.5, 50.0)
    assert (summary.state_limited_loss, summary.avoidable, summary.first_divergence) == (12.5, 12.5, 0)
    assert (summary.duration_s, summary.requests_per_s, summary.most_open) == (14.0, 0.143, 2)


def test_other_token_counts_give_an_estimate_in_these() -> None:
    found = run(answered(0, ids(1, 2, 3), 0, 6), answered(1, ids(1, 2, 3, 7, 9), 6, 10))
    records = all_records(found, page_size=1)
    assert [r.ideal_tokens for r in records] == [0, 8]
    summary = summarise(records, found)
    assert (summary.prompt_tokens, summary.token_counts_differ, summary.hit_rate) == (16, 2, 37.5)


def test_a_server_that_says_nothing_of_its_cache_has_no_hit_rate() -> None:
    found = run(answered(0, ids(1, 2, 3), None))
    summary = summarise(all_records(found, 1), found)
    assert summary.hit_rate is summary.state_limited_loss is summary.cached_tokens is None


def test_nothing_answered() -> None:
    found = run(left=2)
    summary = summarise(all_records(found, 1), found)
    assert (summary.requests, summary.answered, summary.ttft_s, summary.hit_rate) == (2, 0, None, None)


def snapshot(at_s: float, served: int, **metrics: float) -> ServerSnapshot:
    marconi = {
        "live": True,
        "slots": {"cached": 5 + served},
        "stats": {
            "requests": served,
            "lost_tokens": {"evicted": 3 * served, "never_saved": 7},
            "states": {"tail": 4},
            "evictions": [
                {"kind": "tail", "reason": "pool-full", "states": 2 * served},
                {"kind": "tail", "reason": "flush", "states": 9 * served},
            ],
        },
    }
    return ServerSnapshot(at_s=at_s, marconi=marconi, metrics=metrics)


def test_what_the_extension_counted_meanwhile() -> None:
    figures = server_figures([snapshot(0, 2), snapshot(1, 3), snapshot(2, 6)])
    assert figures["evictions"] == 8 and figures["states_held"] == 11
    assert figures["server_loss_tokens"] == {"evicted": 12}
    assert figures["server_counters"]["stats.requests"] == 4
    stock = [
        ServerSnapshot(
            at_s=0, metrics={"sglang:mamba_evictable_tokens": 3.0, "sglang:mamba_used_tokens": 1.0}
        )
    ]
    assert server_figures(stock) == {"states_held": 4} and server_figures([]) == {}


def test_pages_of_servers_that_are_none_of_ours() -> None:
    assert section(b"<html>") is section(b'{"internal_states": []}') is section(None) is None
    page = b"""# HELP x y
sglang:cached_tokens_total{model_name="/a/b",tp_rank="0",source="device"} 12.0
sglang:cached_tokens_total{model_name="/a/b",tp_rank="1",source="device"} 13.0
sglang:num_running_reqs{model_name="m",tp_rank="0"} 3
sglang:latency_bucket{le="1"} 4
sglang:broken{a="b"} NaN
process_cpu_seconds_total 5
"""
    assert samples(page) == {
        'sglang:cached_tokens_total{source="device"}': 12.0,
        "sglang:num_running_reqs": 3.0,
    }
