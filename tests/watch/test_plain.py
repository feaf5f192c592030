"""Hit rates out of SGLang's and vLLM's own metrics."""

from __future__ import annotations

import pytest

from marconi_ext.errors import CheckFailedError
from marconi_ext.watch.plain import read_metrics

SGLANG = """# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
sglang:prompt_tokens_total{model_name="m",tp_rank="0"} 1000.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 500.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 100.0
"""
VLLM = """vllm:prefix_cache_queries_total{engine="0"} 4e3
vllm:prefix_cache_hits_total{engine="0"} 1000
vllm:prompt_tokens_total{engine="0"} 4000
"""


def test_each_engine() -> None:
    found = read_metrics(SGLANG, "u")
    assert found.engine == "SGLang" and found.hit_rate == 0.6
    assert read_metrics(VLLM, "u").hit_rate == 0.25
    later = read_metrics(SGLANG.replace(" 1000.0", " 3000.0"), "u")
    assert later.since(found).hit_rate == 0 and found.since(later) is found, "started anew"


def test_what_tells_nothing_is_said() -> None:
    with pytest.raises(CheckFailedError, match="neither"):
        read_metrics("python_info 1\n", "u")
