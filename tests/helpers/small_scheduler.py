"""SGLang's admission and the order of its scheduler's steps on a cache without an engine.

Real PrefillAdder, allocations, chunked prefill, overlap (a prefill's result is seen after the next batch is made),
retraction and aborts; no forward pass. Answers are drawn. The ratio by which the future of running requests is
counted is fixed and low, and a full batch keeps nobody from trying, so that more is asked of memory than on a server.
"""

from __future__ import annotations

import random
from array import array
from types import SimpleNamespace
from typing import Any, Protocol

from engineless_cache import Driver
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
from sglang.srt.mem_cache.allocation import alloc_req_slots, alloc_token_slots
from sglang.srt.mem_cache.common import checkpoint_kv_cache, evict_from_tree_cache, release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_hooks.radix.concurrency import has_slots_for

NEW_TOKEN_RATIO = 0.5
ABORTED = 0.003  # of running requests, a step


class Admitting(Protocol):
    """A scheduler whose queue `admit` goes through. chunked: the request whose prompt goes on in another chunk"""

    cache: Any
    allocator: Any
    chunk_tokens: int | None
    requests: int
    waiting: list[Req]
    chunked: Req | None


def admit(scheduler: Admitting, others: list[Req]) -> list[Req]:
    """The requests that SGLang's PrefillAdder takes beside `others`, which hold memory. Mutates the queue."""
    batch = SimpleNamespace(reqs=others, batch_size=lambda: len(others))
    cache = scheduler.cache
    adder = PrefillAdder(
        cache.page_size, cache, scheduler.allocator, batch, NEW_TOKEN_RATIO, 16_384, scheduler.chunk_tokens
    )
    if scheduler.chunked is not None:
        scheduler.chunked.init_next_round_input()
        scheduler.chunked = adder.add_chunked_req(scheduler.chunked)
    for req in list(scheduler.waiting):
        if len(others) + len(adder.can_run_list) >= scheduler.requests:
            break
        req.init_next_round_input(cache)
        if cache.shared is None and not has_slots_for(cache, req, adder.can_run_list):
            if req.kv.holds_mamba:  # as SGLang's scheduler where a request isn't admitted
                scheduler.pool.mamba_allocator.free(req.kv.mamba_pool_idx.unsqueeze(-1))
                req.kv.mamba_pool_idx = req.kv.mamba_cow_src_index = None
            break
        added = adder.add_one_req(
            req, has_chunked_req=scheduler.chunked is not None, truncation_align_size=None
        )
        if added is not AddReqResult.CONTINUE:
            break
    scheduler.waiting = [req for req in scheduler.waiting if req not in adder.can_run_list]
    scheduler.chunked = adder.new_chunked_req or scheduler.chunked
    return adder.can_run_list


class SmallScheduler:
    """`submit` requests and `step` until it is idle. `waiting`, `running`: requests; `ended`: their tokens."""

    def __init__(
        self, driver: Driver, rng: random.Random, chunk_tokens: int | None, requests: int, overlap: bool
    ) -> None:
        self.driver, self.cache, self.rng = driver, driver.cache, rng
        self.pool, self.allocator = driver.cache.req_to_token_pool, driver.cache.token_to_kv_pool_allocator
        self.page = driver.cache.page_size
        self.chunk_tokens, self.requests, self.overlap = chunk_tokens, requests, overlap
        self.waiting: list[Req] = []
        self.running: list[Req] = []
        self.unseen: list[Req] = []  # prefilled, the result isn't seen yet
        self.chunked: Req | None = None
        self.ended: list[list[int]] = []
        self.retractions = 0
        self._answers: dict[Req, int] = {}

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self.unseen or self.chunked)

    def submit(self, prompt: list[int], max_new_tokens: int, answer_tokens: int) -> None:
        params = SamplingParams(temperature=0, max_new_tokens=max_new_tokens)
        req = Req(str(len(self._answers)), "", array("q", prompt), params)
        self._answers[req] = answer_tokens
        self.waiting.append(req)

    def step(self) -> bool:
        """A batch of prefills, or else of decodes. False: nothing could be done."""
        batch = self._admit()
        if batch:
            self._prefill(batch)
            if not self.overlap:
                self._see()
            return True
        self._see()
        if self.running:
            self._decode()
            return True
        return False

    def _admit(self) -> list[Req]:
        if self.chunked is not None:
            checkpoint_kv_cache(self.chunked, self.cache)
        return admit(self, self.running + self.unseen)

    def _prefill(self, batch: list[Req]) -> None:
        cache = self.cache
        prefixes = [
            cache.prefix_device_indices(req) if req.prefix_len and not req.kv.holds_kv else None
            for req in batch
        ]
        rows = alloc_req_slots(self.pool, batch, cache)
        places = [self.driver.in_pages(req.prefix_len, req.extend_end) for req in batch]
        tokens = sum(place.stop - place.start for place in places)
        if self.page > 1:  # as SGLang's own estimate for pages
            evict_from_tree_cache(cache, tokens + len(batch) * self.page)
        fresh = list(alloc_token_slots(cache, tokens).split([place.stop - place.start for place in places]))
        for req, row, prefix, place, kv in zip(batch, rows, prefixes, places, fresh, strict=True):
            if prefix is not None:
                self.pool.write((row, slice(0, req.prefix_len)), prefix)
            self.pool.write((row, place), kv)
            req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end
        for req in batch:
            self.driver.plan(req)
        for req in batch:
            for checkpoint in cache.mamba.ledger.unwritten(req):
                checkpoint.written = True
        seen_now, self.unseen = self.unseen, [req for req in batch if req is not self.chunked]
        self._results(seen_now)

    def _see(self) -> None:
        seen_now, self.unseen = self.unseen, []
        self._results(seen_now)

    def _results(self, prefilled: list[Req]) -> None:
        for req in prefilled:
            req.output_ids.append(7)
            if len(req.output_ids) >= self._answers[req]:
                self._end(req)
            else:
                checkpoint_kv_cache(req, self.cache)
                self.running.append(req)

    def _decode(self) -> None:
        while not self.allocator.check_decode_capacity(num_tokens=self._next_tokens(), tree_cache=self.cache):
            req = self.running.pop()
            assert self.running, "one request alone runs out of memory"
            self.retractions += 1
            release_kv_cache(req, self.cache, checkpoint=False)
            evict_from_tree_cache(self.cache, len(self.running) * 20)
            req.reset_for_retract()
            self.waiting.insert(0, req)
        fresh, begin = alloc_token_slots(self.cache, self._next_tokens()), 0
        for req in self.running:
            place = self._next_place(req)
            end = begin + place.stop - place.start
            self.pool.write((req.kv.req_pool_idx, place), fresh[begin:end])
            begin = end
            req.kv.kv_allocated_len += 1
            req.kv.kv_committed_len += 1
            req.output_ids.append(self.rng.randrange(50))
            if self.page > 1 and req.kv.kv_committed_len % self.page == 0:
                req.kv.mamba_last_track_seqlen = req.kv.kv_committed_len
                req.kv.mamba_last_track_idx = req.kv.mamba_next_track_idx
        for req in list(self.running):
            aborted = self.rng.random() < ABORTED
            if aborted or len(req.output_ids) >= self._answers[req]:
                self.running.remove(req)
                self._end(req, keep=not aborted)

    def _next_place(self, req: Req) -> slice:
        return self.driver.in_pages(req.kv.kv_committed_len, req.kv.kv_committed_len + 1)

    def _next_tokens(self) -> int:
        places = map(self._next_place, self.running)
        return sum(place.stop - place.start for place in places)

    def _end(self, req: Req, *, keep: bool = True) -> None:
        req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
        release_kv_cache(req, self.cache, checkpoint=keep)
        self.ended.append([*req.origin_input_ids, *req.output_ids])
