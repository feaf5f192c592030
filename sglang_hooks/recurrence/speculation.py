"""Speculative decoding: the running slot of a request that ends holds the state of its last token, exactly.

A verify runs several drafted tokens and keeps the state after each in the engine's buffers; its commit copies the one
after the last accepted token to the running slot. A request may end before that token. And with overlap the next
verify is launched before the end is seen: it moves the running slot on, and the slot would be cached under a key
that is too short, silently. What ends a request is mostly known beforehand, though: a stop token, or the length. So

1. the commit looks for these among the accepted tokens and copies the state that belongs to the request's last one;
2. where a request has ended, the next verify finds its row pointed at the pool's dummy slot, which it may overwrite.

Both are decided on the device, from tensors that the forward pass has anyway: no slot and no copy of a state more.
Other ends (a stop string, a grammar, an abort) are seen by the host alone: the slot is exact then if no verify is in
flight, else nothing is donated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..hooks import Hook
from ..process_parts import running

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

DUMMY_SLOT = (
    0  # SGLang keeps row 0 of its pools for what padded rows write; its request rows begin at 1 as well
)


@dataclass(eq=False)
class Run:
    """A request's decoding since its last prefill, as it was told to the device.

    number: of this run, never used again
    stops: tokens that end it
    limit_tokens: prompt + longest answer
    launched: verifies, counted on from what the host had seen (`spec_verify_ct`) when the run began
    whole: the last result's accepted tokens were all kept; a grammar may drop some
    """

    number: int
    stops: frozenset[int]
    limit_tokens: int
    launched: int
    whole: bool = True


@dataclass(frozen=True)
class Told:
    """A batch's runs on the device. stops: int64[N, S], filled up with -1; limit_tokens, numbers: int64[N]"""

    stops: torch.Tensor
    limit_tokens: torch.Tensor
    numbers: torch.Tensor


def ended_before(root: torch.Tensor, consumed: torch.Tensor, told: Told) -> torch.Tensor:
    """Which requests had ended when this verify began. bool[N].

    root: int[N], the last token of each answer so far, where its tree begins; consumed: int[N], tokens before it
    """
    return (root[:, None] == told.stops).any(1) | (consumed >= told.limit_tokens - 1)


def tokens_to_keep(
    tokens: torch.Tensor, accept_lens: torch.Tensor, consumed: torch.Tensor, told: Told
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the accepted tokens belong to the request, int64[N], from 1 to accept_lens; and whether its last is
    among them, bool[N].

    tokens: int[N, depth], the accepted path, the root first, anything behind its end; accept_lens: int[N], of the path;
    consumed: int[N], tokens before the root. What the target chose after the path isn't in it: no state knows it yet.
    """
    depth = tokens.shape[1]
    stops = (tokens[:, :, None] == told.stops[:, None]).any(2)
    stops[:, 0] = False  # else it has ended before
    first = torch.where(stops.any(1), stops.int().argmax(1), depth)
    end = torch.minimum(first + 1, told.limit_tokens - consumed)
    return torch.minimum(accept_lens.to(torch.int64), end).clamp(min=1), end <= accept_lens


class AcceptedRuns:
    """Tells the device what ends each request, and the host whether the running slot is exact at its end."""

    def __init__(self, pool: Any) -> None:
        """pool: SGLang's HybridReqToTokenPool, whose mapping from request rows to slots is redirected."""
        self._pool = pool
        mapping = pool.req_index_to_mamba_index_mapping
        self._ended = torch.full(
            mapping.shape, -1, dtype=torch.int64, device=mapping.device
        )  # the run that has ended
        self._numbers = 0
        self._told: Told | None = None
        self._told_for: list[Run] = []
        self._drafts: torch.Tensor | None = None
        self.ends = {"inside_a_run": 0, "after_a_run": 0, "seen_by_host": 0, "too_late": 0}

    def begin(self, req: Req) -> None:
        """The request is about to be prefilled, for the first time or again."""
        self._numbers += 1
        sampling = req.sampling_params
        stops = set() if sampling.ignore_eos else stop_tokens(req)
        limit = len(req.origin_input_ids) + sampling.max_new_tokens
        req.marconi_run = Run(self._numbers, frozenset(stops), limit, req.spec_verify_ct)

    # ---- on the device, in the order of the forward passes ----

    def launching(self, batch: ScheduleBatch) -> None:
        """A verify is about to run: point the rows of requests that have ended at the dummy slot."""
        runs = [req.marconi_run for req in batch.reqs]
        for run in runs:
            run.launched += 1
        told = self._tell(runs, batch.input_ids.device)
        self._drafts = batch.input_ids.view(len(runs), -1)
        rows = batch.req_pool_indices.long()
        ended = ended_before(self._drafts[:, 0], batch.seq_lens, told) | (self._ended[rows] == told.numbers)
        self._pool.req_index_to_mamba_index_mapping[torch.where(ended, rows, 0)] = DUMMY_SLOT

    def steps_to_commit(
        self, batch: ScheduleBatch, accept_index: torch.Tensor, accept_lens: torch.Tensor
    ) -> torch.Tensor:
        """The tree's node whose state becomes each request's running state: int[N], in its own tree.

        accept_index: int[N, depth], the accepted path in the batch's flattened trees, -1 behind its end
        """
        assert self._drafts is not None, "no run was told"
        drafts = self._drafts
        number = torch.arange(len(drafts), device=drafts.device)
        path = accept_index.long() - (number * drafts.shape[1])[:, None]
        keep = self._keep(batch, drafts.gather(1, path.clamp(min=0)), accept_lens, batch.seq_lens)
        return path[number, keep - 1].to(accept_index.dtype)

    def lens_to_commit(
        self, batch: ScheduleBatch, accept_lens: torch.Tensor, consumed: torch.Tensor
    ) -> torch.Tensor:
        """As `steps_to_commit` where each request's drafts are a chain: how many of its accepted tokens are its own.

        accept_lens, and what is returned: int[N], the root included; consumed: int[N], tokens before the root
        """
        assert self._drafts is not None, "no run was told"
        return self._keep(batch, self._drafts, accept_lens, consumed).to(accept_lens.dtype)

    def _keep(
        self, batch: ScheduleBatch, tokens: torch.Tensor, accept_lens: torch.Tensor, consumed: torch.Tensor
    ) -> torch.Tensor:
        """int64[N], see `tokens_to_keep`; remembers which requests have ended."""
        told = self._told
        assert told is not None, "no run was told"
        keep, ended = tokens_to_keep(tokens, accept_lens, consumed, told)
        rows = batch.req_pool_indices.long()
        # By the run's number and not by its row: a retracted request's row may have a new owner by now.
        self._ended[rows] = torch.where(ended, told.numbers, self._ended[rows])
        return keep

    def _tell(self, runs: Sequence[Run], device: torch.device) -> Told:
        if (
            self._told is None
            or len(runs) != len(self._told_for)
            or any(one is not other for one, other in zip(runs, self._told_for, strict=True))
        ):
            width = max(1, *(len(run.stops) for run in runs))
            stops = [[*run.stops, *[-1] * (width - len(run.stops))] for run in runs]
            columns = ([run.limit_tokens for run in runs], [run.number for run in runs])
            packed = torch.tensor([[*columns_, *row] for *columns_, row in zip(*columns, stops, strict=True)])
            packed = packed.to(device, non_blocking=True)
            self._told = Told(packed[:, 2:], packed[:, 0], packed[:, 1])
            self._told_for = list(runs)
        return self._told

    # ---- on the host, when a result is seen ----

    def seen(self, req: Req, whole: bool) -> None:
        """A result ended the request. whole: all its accepted tokens were kept"""
        req.marconi_run.whole = whole

    def is_exact(self, req: Req, length_tokens: int) -> bool:
        """Whether the finished request's running slot holds the state after `length_tokens` of its tokens.

        Counts in `ends` how it ended: where in a run, as only the host saw, or too late for the slot to be exact.
        """
        run, committed = req.marconi_run, req.kv.kv_committed_len
        end = self._end_on_device(req, run)
        if end is not None and run.whole:
            kind, exact = "inside_a_run" if end <= committed else "after_a_run", min(committed, end)
        else:
            alone = run.whole and run.launched == req.spec_verify_ct
            kind, exact = ("seen_by_host", committed) if alone else ("too_late", -1)
        self.ends[kind] += 1
        return length_tokens == exact

    def _end_on_device(self, req: Req, run: Run) -> int | None:
        """Tokens of prompt and answer up to what the device took for the request's end; None: it saw none."""
        prompt, output = len(req.origin_input_ids), req.output_ids
        width = 1 if self._drafts is None else self._drafts.shape[1]  # an accepted run isn't longer
        start = max(0, len(output) - width)
        first = next((at for at in range(start, len(output)) if output[at] in run.stops), None)
        longest = run.limit_tokens - prompt
        if first is not None and first < longest:
            return prompt + first + 1
        return run.limit_tokens if len(output) >= longest else None


def stop_tokens(req: Req) -> set[int]:
    """Tokens that end the request, as `Req._check_token_based_finish` looks for them."""
    found = set(req.sampling_params.stop_token_ids or ()) | set(req.eos_token_ids or ())
    if req.tokenizer is not None:
        found |= {req.tokenizer.eos_token_id, *(req.tokenizer.additional_stop_token_ids or ())}
    return {int(token) for token in found if token is not None}


# ---- hooks: without speculation, or a live extension, SGLang passes through ----


def runs() -> AcceptedRuns | None:
    """The running extension's, where SGLang decodes speculatively."""
    return running(AcceptedRuns)


def _launching(_result: None, batch: Any) -> None:
    accepted = runs()
    # DSPARK prepares twice, the first time before the batch holds its drafts.
    if accepted is not None and not _is_still_drafting(batch):
        accepted.launching(batch)


def _is_still_drafting(batch: Any) -> bool:
    from sglang.srt.speculative.dflash_info_v2 import DFlashDraftInputV2

    return isinstance(batch.spec_info, DFlashDraftInputV2)


def _commit(
    original: Callable[..., None],
    target_worker: Any,
    batch: Any,
    accept_lens: torch.Tensor,
    accept_index: torch.Tensor,
    draft_token_num: int,
    prepared_step_indices: tuple[torch.Tensor, torch.Tensor | None] | None = None,
) -> None:
    accepted, prepared = runs(), prepared_step_indices
    if accepted is not None and not batch.forward_mode.is_idle() and accept_index.numel():
        if prepared is None:
            from sglang.srt.speculative.spec_utils import _verify_commit_step_indices

            prepared = _verify_commit_step_indices(
                batch=batch,
                accept_index=accept_index,
                accept_lens=accept_lens,
                draft_token_num=draft_token_num,
            )
        prepared = accepted.steps_to_commit(batch, accept_index, accept_lens), prepared[1]
    original(target_worker, batch, accept_lens, accept_index, draft_token_num, prepared)


def _commit_chain(
    original: Callable[..., None],
    worker: Any,
    *,
    batch: Any,
    seq_lens_pre_verify: torch.Tensor,
    seq_lens_post_verify: torch.Tensor,
    commit_lens: torch.Tensor,
) -> None:
    """What SGLang would track behind the request's own end isn't tracked either: no key would be as long."""
    accepted = runs()
    if accepted is not None:
        commit_lens = accepted.lens_to_commit(batch, commit_lens, seq_lens_pre_verify)
    original(
        worker,
        batch=batch,
        seq_lens_pre_verify=seq_lens_pre_verify,
        seq_lens_post_verify=seq_lens_post_verify,
        commit_lens=commit_lens,
    )


def _can_cache(original: Callable[..., bool], processor: Any, req: Any, result: Any, i: int) -> bool:
    accepted = runs()
    if accepted is None or result.num_correct_drafts_per_req_cpu is None:
        return original(processor, req, result, i)
    retained = result.grammar_retained_tokens
    verified = result.num_correct_drafts_per_req_cpu[i] + result.num_non_draft_tokens_per_req
    accepted.seen(req, retained is None or retained[i] is None or len(retained[i]) == verified)
    return True


SPECULATION_HOOKS = (
    Hook(
        "sglang.srt.speculative.spec_utils.prepare_mamba_track_for_verify",
        "after",
        _launching,
        why="a request that has ended must leave its running slot alone",
        parameters="batch",
    ),
    Hook(
        "sglang.srt.speculative.spec_utils.commit_mamba_states_after_verify",
        "around",
        _commit,
        why="commit the state of the request's last token, where it ends inside the accepted run",
        parameters="target_worker batch accept_lens accept_index draft_token_num prepared_step_indices",
    ),
    Hook(
        "sglang.srt.speculative.dflash_worker_v2.DFlashWorkerV2._update_target_mamba_state_after_verify",
        "around",
        _commit_chain,
        why="the same for DFLASH, which commits states itself",
        parameters="self batch seq_lens_pre_verify seq_lens_post_verify commit_lens",
    ),
    Hook(
        "sglang.srt.speculative.dspark_components.dspark_worker_v2.DSparkWorkerV2."
        "_commit_target_mamba_states_after_verify",
        "around",
        _commit_chain,
        why="the same for DSPARK",
        parameters="self batch seq_lens_pre_verify seq_lens_post_verify commit_lens",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.batch_result_processor."
        "SchedulerBatchResultProcessor._mamba_can_cache_finished_req",
        "around",
        _can_cache,
        why="stock caches neither state nor KV of a request that ends inside a run and has no tracking slots",
        parameters="self req result i",
    ),
)
