"""SGLang's prefix caches without an engine: the three contestants, and a request's way through one of them.

Real pools, real caches and real request objects, driven as the scheduler drives them; only the forward pass is left
out. States and KV are a few bytes each, so that what is timed is bookkeeping. Times are processor time of this
thread: other work on the machine blurs them far less than the clock.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req, ScheduleBatch
from sglang.srt.mem_cache.allocation import alloc_req_slots, alloc_token_slots
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import checkpoint_kv_cache, evict_from_tree_cache, release_kv_cache
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, HybridReqToTokenPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_memory_pool import init_unified_mamba_pools
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import mamba_cache_chunk_size
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

from marconi_ext.config import MarconiConfig
from marconi_ext.policies.answer_grid import places
from marconi_ext.policies.currency import Currency
from sglang_hooks.ledger import CheckpointLedger
from sglang_hooks.policy import build_runtime
from sglang_hooks.radix.cache import MarconiRadixCache, our_components
from sglang_hooks.stats import CacheStats

CONTESTANTS = ("stock-rust", "stock-python", "marconi")
PHASES = ("match", "plan", "evict", "catch up", "insert", "finish", "evict later")
BEFORE_LAUNCH = PHASES[:3]
"""Of the request's own prefill, with what is evicted for it; the rest overlaps with the GPU."""


def publish_settings(chunk_tokens: int = 256) -> None:
    """What SGLang's caches read of a server's arguments, for this process.

    chunk_tokens: of the model, and of stock's tracking during decode; 256 is Nemotron-H's, and SGLang's default
    """
    args = ServerArgs(model_path="dummy", page_size=1)
    args._mamba_cache_chunk_size = chunk_tokens
    set_global_server_args_for_scheduler(args)
    torch.set_num_threads(1)


def build(
    contestant: str,
    *,
    slots: int = 0,
    tokens: int = 0,
    context_tokens: int,
    requests: int = 4,
    page_size: int = 1,
    shared_bytes: int | None = None,
    state_size: int = 2,
    policy: str = "gittins",
    **settings: Any,
) -> UnifiedRadixCache:
    """A cache with pools of its own: `slots` states, `tokens` of KV in pages, `requests` at a time of up to
    `context_tokens`.

    state_size: columns of a state of 8 rows
    policy: of ours, with the admission that goes with it
    shared_bytes: one buffer of so many bytes instead, for states and KV alike (`--enable-unified-memory`)
    settings: further fields of SGLang's CacheInitParams
    """
    shape = Mamba2StateShape.create(
        tp_world_size=1,
        intermediate_size=8,
        n_groups=1,
        num_heads=1,
        head_dim=8,
        state_size=state_size,
        conv_kernel=4,
    )
    cache_params = Mamba2CacheParams(shape=shape, layers=[0])
    if shared_bytes is None:
        pool, allocator = _separate_pools(cache_params, requests, slots, tokens, context_tokens, page_size)
    else:
        pool, allocator = _shared_pool(cache_params, requests, shared_bytes, context_tokens, page_size)
    params = CacheInitParams(
        disable=False,
        req_to_token_pool=pool,
        token_to_kv_pool_allocator=allocator,
        page_size=page_size,
        tree_components=(ComponentType.FULL, ComponentType.MAMBA),
        enable_mamba_extra_buffer=True,
        **settings,
    )
    if contestant != "marconi":
        params.tree_core_backend = contestant.removeprefix("stock-")
        cache = UnifiedRadixCache(params=params)
        assert cache._tree_core_backend == params.tree_core_backend, "SGLang fell back to another core"
        return cache
    our_components(params)
    cache = MarconiRadixCache(params=params)
    config = MarconiConfig(eviction=policy)
    # worth and prices of Nemotron-H-8B; a slot each, so KV costs nothing here, as in separate pools
    currency = Currency(linear=1.6e10, quadratic=1.6e4)
    if cache.shared is not None:
        currency = cache.shared.currency(currency)
    cache.mamba.adopt(config, build_runtime(config, currency), CheckpointLedger(), CacheStats())
    cache.mamba.tracks_decode = page_size > 1  # as `assembly.build_cache` has it
    if page_size == 1:
        pool.mamba_initial_tracking_slots = 0
    return cache


def _separate_pools(
    cache_params: Mamba2CacheParams,
    requests: int,
    slots: int,
    tokens: int,
    context_tokens: int,
    page_size: int,
) -> tuple[HybridReqToTokenPool, Any]:
    pool = HybridReqToTokenPool(
        size=requests,
        mamba_size=slots,
        mamba_spec_state_size=0,
        max_context_len=context_tokens,
        device="cpu",
        enable_memory_saver=False,
        cache_params=cache_params,
        mamba_layer_ids=[0],
        enable_mamba_extra_buffer=True,
    )
    kv = HybridLinearKVPool(
        size=tokens,
        dtype=torch.bfloat16,
        page_size=page_size,
        head_num=1,
        head_dim=2,
        full_attention_layer_ids=[1],
        device="cpu",
        enable_memory_saver=False,
        mamba_pool=pool.mamba_pool,
    )
    options = {"size": tokens, "dtype": torch.bfloat16, "device": "cpu", "kvcache": kv, "need_sort": False}
    if page_size == 1:
        return pool, TokenToKVPoolAllocator(**options)
    return pool, PagedTokenToKVPoolAllocator(page_size=page_size, **options)


def _shared_pool(
    cache_params: Mamba2CacheParams, requests: int, shared_bytes: int, context_tokens: int, page_size: int
) -> tuple[HybridReqToTokenPool, Any]:
    bundle = init_unified_mamba_pools(
        device="cpu",
        kv_cache_dtype=torch.bfloat16,
        head_num=1,
        head_dim=8,
        page_size=page_size,
        start_layer=0,
        end_layer=2,
        is_draft_worker=False,
        use_mla_backend=False,
        mamba_layer_ids=[0],
        full_attention_layer_ids=[1],
        mamba2_cache_params=cache_params,
        model_context_len=context_tokens,
        extra_max_context_len=0,
        max_total_num_tokens=0,
        max_mamba_cache_size=0,
        max_num_reqs=requests,
        enable_memory_saver=False,
        enable_mamba_extra_buffer=True,
        enable_mamba_extra_buffer_lazy=False,
        speculative_num_draft_tokens=None,
        disable_overlap_schedule=False,
        need_sort=False,
        lazy_compaction=True,  # as a server has it, so that freed bytes move between the two kinds
        unified_total_bytes=shared_bytes,
    )
    return bundle.req_to_token_pool, bundle.token_to_kv_pool_allocator


def decode_batch(reqs: list[Req], mode: ForwardMode = ForwardMode.DECODE) -> SimpleNamespace:
    """What tracking sees of a batch that decodes the last token of each request."""
    return SimpleNamespace(
        reqs=reqs,
        seq_lens_cpu=torch.tensor([req.kv.kv_committed_len for req in reqs]),
        forward_mode=mode,
        mamba_track_mask_cpu=[False] * len(reqs),
        mamba_track_mask_next_cpu=None,
        mamba_track_mask=torch.zeros(len(reqs), dtype=torch.bool),
        mamba_track_indices=torch.zeros(len(reqs), dtype=torch.int64),
    )


class Driver:
    """Takes requests through one cache; `spent` has the ns of the last one by phase, `evictions` of each call,
    by what was wanted."""

    def __init__(self, contestant: str, **options: Any) -> None:
        self.contestant = contestant
        self.cache = build(contestant, **options)
        self.spent = dict.fromkeys(PHASES, 0)
        self.evictions: dict[str, list[int]] = {"KV": [], "state": []}
        self.hit_tokens = 0
        self._chunk_tokens = mamba_cache_chunk_size()
        self.plan = self._planner()
        self._evicting, self._launched = 0, False
        self.cache.evict_for_alloc = self._timing(
            self.cache.evict_for_alloc, lambda params, **_: "state" if params.mamba_num else "KV"
        )
        if contestant == "marconi":  # takes a new state's slot from its victim's in one step
            mamba = self.cache.mamba
            mamba.take_slot_of_lesser = self._timing(mamba.take_slot_of_lesser, lambda _row: "state")

    def _timing(self, evict: Callable[..., Any], wanted: Callable[..., str]) -> Callable[..., Any]:
        """`evict`, timed; what evicts nothing, as it refuses a newcomer, isn't counted among the calls."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time_ns()
            result = evict(*args, **kwargs)
            took = time.thread_time_ns() - started
            self._evicting += took
            if result is not None:
                self.evictions[wanted(*args, **kwargs)].append(took)
            return result

        return timed

    def _planner(self) -> Callable[[Req], None]:
        if self.contestant == "marconi":
            return self.cache.mamba.plan_request
        batch = SimpleNamespace(
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace(mamba_chunk_size=self._chunk_tokens)),
            tree_cache=self.cache,
            req_to_token_pool=self.cache.req_to_token_pool,
        )
        return lambda req: ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend(batch, req)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Evictions are booked to a phase of their own, by whether the prefill has been launched."""
        evicting, started = self._evicting, time.thread_time_ns()
        yield
        took, evicted = time.thread_time_ns() - started, self._evicting - evicting
        self.spent[phase] += took - evicted
        self.spent["evict later" if self._launched else "evict"] += evicted

    def serve(self, number: int, prompt: array, output: array) -> dict[str, int]:
        """One request from its match to its end; returns its ns by phase."""
        self.spent = dict.fromkeys(PHASES, 0)
        req = self.match(number, prompt, len(output))
        self.hit_tokens = req.prefix_len
        self.prefill(req)
        self.finish(req, output)
        return self.spent

    def match(self, number: int, prompt: array, output_tokens: int) -> Req:
        """A request that has found its prefix, and locks it."""
        self._launched = False
        req = Req(str(number), "", prompt, SamplingParams(temperature=0, max_new_tokens=output_tokens))
        with self._timed("match"):
            req.init_next_round_input(self.cache)
            req.lock = self.cache.lock(req.last_node)
        req.extend_end = len(prompt)
        return req

    def prefill(self, req: Req) -> None:
        """Its room and its plan; and after the launch what was left for later, and what is published."""
        cache, pool, hit = self.cache, self.cache.req_to_token_pool, req.prefix_len
        new = self.in_pages(hit, req.extend_end)
        with self._timed("plan"):
            begins = not req.kv.holds_kv  # else it goes on in another chunk
            rows = alloc_req_slots(pool, [req], cache)
            prefix = cache.prefix_device_indices(req) if hit and begins else None
            fresh = alloc_token_slots(cache, new.stop - new.start)
        if prefix is not None:
            pool.write((rows[0], slice(0, hit)), prefix)
        pool.write((rows[0], new), fresh)
        req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end
        with self._timed("plan"):
            self.plan(req)
        self._launched = True
        if self.contestant == "marconi":
            with self._timed("catch up"):
                cache.mamba.runtime.catch_up()
            for checkpoint in cache.mamba.ledger.unwritten(req):
                checkpoint.written = True
        with self._timed("insert"):
            # overlap: room for the first decode is made before the insert
            if req.sampling_params.max_new_tokens > 1:
                evict_from_tree_cache(cache, 1)
            checkpoint_kv_cache(req, cache)

    def finish(self, req: Req, output: array, *, keep: bool = True) -> None:
        """Its answer, whose last token has no KV, and its end; without `keep` as after an abort."""
        begin = req.kv.kv_committed_len
        end = begin + len(output) - 1
        grid = self.cache.mamba.answers.grid(req) if self.contestant == "marconi" else 0
        for tokens in sorted({*places(begin, end, grid), end}):
            self._decode(req, tokens)
            if grid:
                batch = decode_batch([req])
                with self._timed("finish"):
                    self.cache.mamba.answers.track(batch)
        req.output_ids.extend(output)
        req.finished_reason = FINISH_LENGTH(length=len(output))
        page = self.cache.page_size
        grid = max(grid, page) if self.contestant == "marconi" else self._chunk_tokens
        tracked = end - end % grid
        if (page > 1 or self.contestant != "marconi") and tracked > begin:
            req.kv.mamba_last_track_seqlen = tracked
            if self.contestant == "marconi":
                req.kv.mamba_last_track_idx = req.kv.mamba_next_track_idx
        with self._timed("finish"):
            release_kv_cache(req, self.cache, checkpoint=keep)

    def _decode(self, req: Req, tokens: int) -> None:
        """Up to so many tokens."""
        new = self.in_pages(req.kv.kv_committed_len, tokens)
        with self._timed("finish"):
            fresh = alloc_token_slots(self.cache, new.stop - new.start)
        self.cache.req_to_token_pool.write((req.kv.req_pool_idx, new), fresh)
        req.kv.kv_allocated_len = req.kv.kv_committed_len = tokens

    def in_pages(self, begin: int, end: int) -> slice:
        """What of the tokens from `begin` to `end` needs new pages."""
        page = self.cache.page_size
        return slice(-(-begin // page) * page, -(-end // page) * page)
