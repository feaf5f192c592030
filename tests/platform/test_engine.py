"""The real engine on the CPU platform: one set of answers, whatever SGLang's options and our mode are.

Each server costs half a minute to start, so that each checks several things at once.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

pytest.importorskip("sglang_hooks.cpu_platform.platform")


from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.servers.engine_options import CPU_OPTIONS, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec

pytestmark = pytest.mark.engine

ANSWER_TOKENS = 4
LOGPROB_TOLERANCE = 1e-4
BASE = {"max_total_tokens": 20_000, "max_mamba_cache_size": 60, "context_length": 8192, "random_seed": 1}
VARIANTS = {
    "overlap, any page": {},
    "no overlap, page 64": {"disable_overlap_schedule": True, "page_size": 64},
    "two ranks, lazy buffer, chunked and mixed, page 16": {
        "tp_size": 2,
        "mamba_radix_cache_strategy": "extra_buffer_lazy",
        "chunked_prefill_size": 64,
        "enable_mixed_chunk": True,
        "page_size": 16,
    },
    "no buffer": {"mamba_radix_cache_strategy": "no_buffer", "disable_overlap_schedule": True},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "toy", ToyModel(vocab=2000))


@contextmanager
def server(model, *, mode: str = "fast", **options):
    options = {"model_path": model, **CPU_OPTIONS, **BASE, **options}
    variables = environment(cpu=True) | {"MARCONI_CPU_MODE": mode}
    with Server(ServerSpec(tuple(to_flags(options)), variables)) as running:
        running.start()
        yield running
        running.require_alive()


def prompts() -> list[list[int]]:
    """Around the chunk of 64 and the convolution's 4 taps; then forks of, and additions to, the longest one."""
    ids = np.random.default_rng(0).integers(1000, 2000, 400).tolist()
    alone = [ids[:1], ids[1:4], ids[5:68], ids[70:134], ids[140:205]]
    shared = [ids[:200], [*ids[:200], 1007], ids[:129] + ids[300:350], ids[:128] + ids[310:320], ids[:300]]
    return alone + shared


def ask(url: str, ids: list[int]) -> tuple[list[int], list[float], int]:
    """Output tokens, their logprobs, and how many prompt tokens came from the cache."""
    body = {
        "input_ids": ids,
        "sampling_params": {"temperature": 0, "max_new_tokens": ANSWER_TOKENS, "ignore_eos": True},
        "return_logprob": True,
    }
    answer = httpx.post(f"{url}/generate", json=body, timeout=300).raise_for_status().json()
    meta = answer["meta_info"]
    return answer["output_ids"], [x[0] for x in meta["output_token_logprobs"]], meta["cached_tokens"]


def check(answers, expected) -> None:
    for (tokens, logprobs, _), (wanted, wanted_logprobs, _) in zip(answers, expected, strict=True):
        assert tokens == wanted
        assert np.abs(np.subtract(logprobs, wanted_logprobs)).max() < LOGPROB_TOLERANCE


@pytest.fixture(scope="module")
def expected(model):
    """Answers one at a time, with no cache at all."""
    with server(model, disable_radix_cache=True) as live:
        answers = [ask(live.url, ids) for ids in prompts()]
    assert not any(cached for _, _, cached in answers)
    first_tokens = [tokens[0] for tokens, _, _ in answers]
    assert len(set(first_tokens)) > len(first_tokens) // 2, "the model answers the same to everything"
    return answers


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_answers(model, expected, variant):
    """One at a time, and then all at once with the cache warm."""
    with server(model, **VARIANTS[variant]) as live:
        check([ask(live.url, ids) for ids in prompts()], expected)
        with ThreadPoolExecutor(len(expected)) as pool:
            warm = list(pool.map(lambda ids: ask(live.url, ids), prompts()))
        check(warm, expected)
        if variant != "no buffer":  # SGLang keeps no state inside a prompt there
            assert sum(cached for _, _, cached in warm) > 0
        if variant == "overlap, any page":
            check_http(live.url, expected)


def check_http(url: str, expected) -> None:
    """Streaming, OpenAI's completions, memory released and taken again, on a server that runs anyway."""
    body = {
        "input_ids": prompts()[5],
        "sampling_params": {"temperature": 0, "max_new_tokens": ANSWER_TOKENS, "ignore_eos": True},
        "stream": True,
    }
    with httpx.stream("POST", f"{url}/generate", json=body, timeout=60) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["output_ids"] == expected[5][0]
    body = {"model": "toy", "prompt": "The quick brown fox", "max_tokens": 5, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["text"]
    for path in ("release_memory_occupation", "resume_memory_occupation"):
        httpx.post(f"{url}/{path}", json={}, timeout=60).raise_for_status()
    check([ask(url, prompts()[5])], expected[5:6])


def test_interpreter_gives_the_same_answers(model, expected):
    """SGLang's own Triton kernels in the engine: slow, hence only prompts of up to 65 tokens."""
    with server(model, mode="interpreter") as live:
        check([ask(live.url, ids) for ids in prompts()[:5]], expected[:5])


def test_host_tier_brings_states_back(model, expected):
    """Pools too small for the traffic: what left the device comes back from the host, and is right."""
    rng = np.random.default_rng(5)
    filler = [rng.integers(1000, 2000, 500).tolist() for _ in range(6)]
    small = {"max_total_tokens": 2500, "max_mamba_cache_size": 12, "hicache_ratio": 4.0}
    with server(model, enable_hierarchical_cache=True, enable_metrics=True, **small) as live:
        check([ask(live.url, ids) for ids in prompts()], expected)
        for ids in filler:
            ask(live.url, ids)
        again = [ask(live.url, ids) for ids in prompts()]
        check(again, expected)
        assert sum(cached for _, _, cached in again) > 0
        assert "sglang" in httpx.get(f"{live.url}/metrics", timeout=30).text
