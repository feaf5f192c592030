"""SGLang's overlap order on a cache without an engine: the next batch is made before the last result is seen.

One `step` is one turn of `Scheduler.event_loop_overlap`: what was aborted between chunks goes, the chunk before is
published, the last prefill joins the running batch, a batch is made (real PrefillAdder and allocations) or running
requests are decoded, some of them preempted or retracted first, and only then the result of the batch before is seen.
Nothing is drawn here: who is retracted, aborted or evicted, and every answer, comes from the caller.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from engineless_cache import Driver, decode_batch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, FINISH_MATCHED_TOKEN, Req
from sglang.srt.mem_cache.allocation import alloc_req_slots, alloc_token_slots
from sglang.srt.mem_cache.common import checkpoint_kv_cache, evict_from_tree_cache, release_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams
from small_scheduler import admit

from marconi_ext.policies.held_states import HeldStates
from sglang_hooks.ledger import PendingCheckpoint


@dataclass
class Launched:
    """A batch whose result isn't seen yet. middle: the request of it whose prompt goes on in another chunk"""

    reqs: list[Req]
    is_prefill: bool
    middle: Req | None = None


@dataclass
class Answer:
    """What a request will say. stops: its last token ends it, which SGLang sees one step late"""

    tokens: list[int]
    stops: bool


@dataclass
class OverlapScheduler:
    """`submit`, `abort`, `step` until `idle`. ended: tokens of prompt and answer"""

    driver: Driver
    chunk_tokens: int | None
    requests: int
    waiting: list[Req] = field(default_factory=list)
    running: list[Req] = field(default_factory=list)
    ended: list[list[int]] = field(default_factory=list)
    chunked: Req | None = None
    retractions: int = 0

    def __post_init__(self) -> None:
        self.cache = self.driver.cache
        self.pool = self.cache.req_to_token_pool
        self.allocator = self.cache.token_to_kv_pool_allocator
        self._last: Launched | None = None
        self._aborted_chunk: Req | None = None
        self._answers: dict[Req, Answer] = {}

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self._last or self.chunked)

    @property
    def unfinished(self) -> list[Req]:
        """Every request that may still be aborted."""
        of_last = self._last.reqs if self._last else []
        chunked = [self.chunked] if self.chunked else []
        found = dict.fromkeys([*self.waiting, *self.running, *of_last, *chunked])
        return [req for req in found if not req.finished()]

    def submit(self, prompt: list[int], answer: list[int], *, stops: bool = False) -> Req:
        params = SamplingParams(temperature=0, max_new_tokens=len(answer) + stops)
        req = Req(str(len(self._answers)), "", array("q", prompt), params)
        self._answers[req] = Answer(list(answer), stops)
        self.waiting.append(req)
        return req

    def abort(self, req: Req) -> None:
        """As a client's abort: at once in the queue, between two chunks, else with the next result."""
        if req is self.chunked:
            self._aborted_chunk = req
        elif req in self.waiting:
            self.waiting.remove(req)
            if req.kv.holds_mamba:
                release_kv_cache(req, self.cache, checkpoint=False)
        else:
            req.to_finish = FINISH_ABORT("aborted")

    def about_to_end(self, req: Req) -> bool:
        """Whether the result that isn't seen yet ends the request by its length."""
        return self._last is not None and req in self._last.reqs and self._ends_by_length(req)

    def step(self, *, prefill: bool = True, preempt: int | None = None, retract: int | None = None) -> None:
        """One turn of the loop. preempt, retract: number of a running request that loses its place before the batch is
        made, to one that waits or to the others"""
        batch = self._make_batch(prefill, preempt, retract)
        for req in [] if batch is None else batch.reqs:  # the forward pass was launched
            for checkpoint in self.cache.mamba.ledger.unwritten(req):
                checkpoint.written = True
        last, self._last = self._last, batch
        if last is not None:
            self._see(last)

    # ---- the next batch ----

    def _make_batch(self, prefill: bool, preempt: int | None, retract: int | None) -> Launched | None:
        self._drop_aborted_chunk()
        if self.chunked is not None and self.chunked.extend_end > self.chunked.prefix_len:
            checkpoint_kv_cache(self.chunked, self.cache)
        if self._last is not None and self._last.is_prefill:
            self.running += [req for req in self._last.reqs if req not in (self.chunked, self._last.middle)]
        self.running = [req for req in self.running if not req.finished()]
        preempted: list[Req] = []
        if preempt is not None and self.running:
            preempted = [self._retract(self.running[preempt % len(self.running)])]
        batch = self._admit() if prefill or self.chunked is not None else None
        self.waiting = preempted + self.waiting
        return batch or self._decode(retract)

    def _drop_aborted_chunk(self) -> None:
        req, self._aborted_chunk = self._aborted_chunk, None
        if req is None or req is not self.chunked:
            if req is not None and req in self.unfinished:
                self.abort(req)
            return
        req.to_finish, req.finished_reason = None, FINISH_ABORT("aborted")
        release_kv_cache(req, self.cache, checkpoint=False)
        self.chunked = None

    def _admit(self) -> Launched | None:
        reqs = admit(self, self.running)
        if not reqs:
            return None
        self._prefill(reqs)
        return Launched(reqs, True, self.chunked)

    def _prefill(self, reqs: list[Req]) -> None:
        cache = self.cache
        prefixes = [
            cache.prefix_device_indices(req) if req.prefix_len and not req.kv.holds_kv else None
            for req in reqs
        ]
        rows = alloc_req_slots(self.pool, reqs, cache)
        fresh = alloc_token_slots(cache, sum(req.extend_end - req.prefix_len for req in reqs))
        for req, row, prefix in zip(reqs, rows, prefixes, strict=True):
            req.is_retracted = False
            new = req.extend_end - req.prefix_len
            if prefix is not None:
                self.pool.write((row, slice(0, req.prefix_len)), prefix)
            self.pool.write((row, slice(req.prefix_len, req.extend_end)), fresh[:new])
            fresh = fresh[new:]
            req.kv.kv_allocated_len = req.kv.kv_committed_len = req.extend_end
        for req in reqs:
            cache.mamba.plan_request(req)

    def _decode(self, retract: int | None) -> Launched | None:
        in_flight = [] if self._last is None else self._last.reqs
        finishing = [req for req in self.running if req in in_flight and self._ends_by_length(req)]
        reqs = [req for req in self.running if req not in finishing]
        if retract is not None and reqs:
            self.waiting.insert(0, self._retract(reqs.pop(retract % len(reqs))))
        while reqs and not self.allocator.check_decode_capacity(num_tokens=len(reqs), tree_cache=self.cache):
            if finishing:
                return None  # the result in flight frees their KV
            self.waiting.insert(0, self._retract(reqs.pop()))
        if not reqs:
            return None
        for req, place in zip(reqs, alloc_token_slots(self.cache, len(reqs)), strict=True):
            end = req.kv.kv_committed_len
            self.pool.write((req.kv.req_pool_idx, slice(end, end + 1)), place.reshape(1))
            req.kv.kv_allocated_len += 1
            req.kv.kv_committed_len += 1
        self.cache.mamba.answers.track(decode_batch(reqs))
        return Launched(list(reqs), False)

    def _ends_by_length(self, req: Req) -> bool:
        answer = self._answers[req]
        return not answer.stops and len(req.output_ids) + 1 >= len(answer.tokens)

    def _retract(self, req: Req) -> Req:
        self.retractions += 1
        self.running.remove(req)
        release_kv_cache(req, self.cache, checkpoint=False)
        evict_from_tree_cache(self.cache, len(self.running))
        req.reset_for_retract()
        return req

    # ---- the last result ----

    def _see(self, last: Launched) -> None:
        for req in last.reqs:
            if req.finished() or req.is_retracted or req is last.middle:
                continue
            answer = self._answers[req]
            req.output_ids.append(answer.tokens[min(len(req.output_ids), len(answer.tokens) - 1)])
            if req.to_finish is not None:
                req.finished_reason = req.to_finish
            elif len(req.output_ids) >= len(answer.tokens):
                if answer.stops:
                    req.finished_reason = FINISH_MATCHED_TOKEN(matched=answer.tokens[-1])
                else:
                    req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
            if req.finished():
                req.finished_len = len(req.output_ids)
                release_kv_cache(req, self.cache, checkpoint=True)
                self.ended.append([*req.origin_input_ids, *req.output_ids])
            elif last.is_prefill:
                checkpoint_kv_cache(req, self.cache)


def refuses_whatever_came(held: HeldStates, checkpoint: PendingCheckpoint, _reason: str) -> None:
    """In place of `HeldStates.abandon`: an abandoned plan says that there is no state, though another request has
    brought one. A fault that once stood there, for tests to put back."""
    row = held.settle(checkpoint)
    if row >= 0:
        held.runtime.refused(row)
