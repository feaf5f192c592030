"""Where a request ends inside a verify: the device's choice against a reading of the answer token by token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hook_functions import hooked
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.speculative.dflash_info_v2 import DFlashDraftInputV2

from sglang_hooks.recurrence import speculation
from sglang_hooks.recurrence.speculation import AcceptedRuns, Told, ended_before, tokens_to_keep

PROMPT = 10
STOP = 0


def request(answer_tokens: int, *, stops: tuple[int, ...] = (STOP,), row: int = 1) -> Any:
    sampling = SimpleNamespace(ignore_eos=not stops, stop_token_ids=set(stops), max_new_tokens=answer_tokens)
    return SimpleNamespace(
        sampling_params=sampling,
        origin_input_ids=[9] * PROMPT,
        output_ids=[],
        eos_token_ids=None,
        tokenizer=None,
        spec_verify_ct=0,
        row=row,
        kv=SimpleNamespace(kv_committed_len=PROMPT),
    )


class Device:
    """A pool whose running slots say how many tokens their state has consumed, and chains of drafts.

    lengths_alone: SGLang commits by how many tokens it accepts, as with DFLASH, and knows no path
    """

    def __init__(self, requests: list[Any], lengths_alone: bool = False) -> None:
        self.lengths_alone = lengths_alone
        mapping = torch.zeros(8, dtype=torch.int32)
        self.pool = SimpleNamespace(req_index_to_mamba_index_mapping=mapping)
        self.runs, self.requests = AcceptedRuns(self.pool), requests
        self.consumed = torch.zeros(8, dtype=torch.int64)
        self.lengths = {req.row: PROMPT for req in requests}
        for req in requests:
            mapping[req.row] = req.row
            self.consumed[req.row] = PROMPT
            self.runs.begin(req)

    def verify(self, chains: list[list[int]], accepted: list[int]) -> None:
        """Each chain begins with the last token of the answer; of it, `accepted` tokens are."""
        rows = torch.tensor([req.row for req in self.requests])
        lengths = torch.tensor([self.lengths[req.row] for req in self.requests])
        batch = SimpleNamespace(
            reqs=self.requests,
            input_ids=torch.tensor(chains).flatten(),
            req_pool_indices=rows,
            seq_lens=lengths,
        )
        self.runs.launching(batch)
        slots = self.pool.req_index_to_mamba_index_mapping[rows].long()
        width = len(chains[0])
        path = torch.arange(width).repeat(len(chains), 1) + torch.arange(len(chains))[:, None] * width
        taken = torch.tensor(accepted)
        path[torch.arange(width) >= taken[:, None]] = -1
        if self.lengths_alone:
            steps = self.runs.lens_to_commit(batch, taken, lengths) - 1
        else:
            steps = self.runs.steps_to_commit(batch, path, taken)
        self.consumed[slots] = lengths + steps + 1
        for req, length in zip(self.requests, accepted, strict=True):
            self.lengths[req.row] += length


@settings(max_examples=200)
@given(
    tokens=st.lists(st.integers(0, 4), min_size=2, max_size=24),
    runs=st.lists(st.integers(1, 4), min_size=24, max_size=24),
    answer_tokens=st.integers(1, 20),
    overlap=st.booleans(),
    lengths_alone=st.booleans(),
)
def test_the_slot_at_the_end_is_exact(
    tokens: list[int], runs: list[int], answer_tokens: int, overlap: bool, lengths_alone: bool
) -> None:
    """The model says `tokens` for ever. Each verify takes some; the host sees a result one verify late, or at once."""
    said = tokens * 20
    req = request(answer_tokens)
    device = Device([req], lengths_alone)
    ends = next(at + 1 for at, token in enumerate(said) if token == STOP or at + 1 == answer_tokens)
    told, results, seen = 1, [1], 0  # the prefill's token is the first result

    def launch() -> None:
        nonlocal told
        take = runs[len(results) % len(runs)]
        device.verify([[*said[told - 1 : told + 3]]], [take])
        told += take
        results.append(take)

    while True:
        if overlap:
            launch()
        take = results[seen]
        req.output_ids += said[len(req.output_ids) : len(req.output_ids) + take]
        if seen:
            req.spec_verify_ct += 1
            req.kv.kv_committed_len += take
        seen += 1
        if len(req.output_ids) >= ends:
            break
        if not overlap:
            launch()
    device.runs.seen(req, True)
    owned = min(req.kv.kv_committed_len, PROMPT + ends)
    assert device.consumed[req.row] == owned
    assert device.runs.is_exact(req, owned)
    assert not device.runs.is_exact(req, owned - 1) and not device.runs.is_exact(req, owned + 1)


def test_another_request_of_the_batch_goes_on() -> None:
    ending, other = request(3, row=1), request(9, row=2)
    device = Device([ending, other])
    device.verify([[1, 2, 3, 4]] * 2, [4, 4])
    device.verify([[5, 6, 7, 8]] * 2, [2, 2])
    assert device.consumed[[1, 2]].tolist() == [PROMPT + 3, PROMPT + 6]
    assert device.pool.req_index_to_mamba_index_mapping[[1, 2]].tolist() == [0, 2]


def test_a_row_that_was_handed_on_is_left_alone() -> None:
    """A request is retracted while the verify that ends it is in flight, and its row has a new owner."""
    first, second = request(2), request(50)
    device = Device([first])
    device.verify([[1, 2, 3, 4]], [4])
    device.requests, device.lengths[1] = [second], PROMPT
    device.runs.begin(second)
    device.pool.req_index_to_mamba_index_mapping[1] = 5
    device.verify([[1, 2, 3, 4]], [3])
    assert device.pool.req_index_to_mamba_index_mapping[1] == 5
    assert device.consumed[5] == PROMPT + 3


@pytest.mark.parametrize("in_flight", [False, True])
def test_an_end_that_only_the_host_sees(in_flight: bool) -> None:
    """A stop string, an abort: exact only if no verify was launched since."""
    req = request(50, stops=())
    device = Device([req])
    device.verify([[1, 2, 3, 4]], [3])
    req.output_ids, req.spec_verify_ct, req.kv.kv_committed_len = [1, 2, 3, 7], 1, PROMPT + 3
    if in_flight:
        device.verify([[7, 2, 3, 4]], [2])
    device.runs.seen(req, True)
    assert device.runs.is_exact(req, PROMPT + 3) is not in_flight
    assert not device.runs.is_exact(req, PROMPT + 2)


def test_a_run_that_a_grammar_cut_is_never_donated() -> None:
    req = request(50, stops=())
    device = Device([req])
    device.verify([[1, 2, 3, 4]], [3])
    req.output_ids, req.spec_verify_ct, req.kv.kv_committed_len = [1, 2], 1, PROMPT + 1
    device.runs.seen(req, False)
    assert not any(device.runs.is_exact(req, length) for length in range(PROMPT, PROMPT + 5))


def test_without_stop_tokens_any_token_goes() -> None:
    told = Told(torch.tensor([[-1]]), torch.tensor([100]), torch.tensor([1]))
    tokens = torch.tensor([[0, 0, 0]])
    keep, ended = tokens_to_keep(tokens, torch.tensor([3]), torch.tensor([10]), told)
    assert (keep.tolist(), ended.tolist()) == ([3], [False])
    assert ended_before(tokens[:, 0], torch.tensor([10]), told).tolist() == [False]


def test_a_verify_that_is_prepared_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """DSPARK prepares a verify before it has given the batch its drafts, and once more with them."""
    device = Device([request(50)])
    monkeypatch.setattr(speculation, "runs", lambda: device.runs)
    batch = SimpleNamespace(
        reqs=device.requests,
        input_ids=torch.tensor([1, 2, 3, 4, 5]),  # the last forward's
        req_pool_indices=torch.tensor([1]),
        seq_lens=torch.tensor([PROMPT]),
        spec_info=DFlashDraftInputV2.create_idle_input(torch.device("cpu")),
    )
    prepared = hooked(speculation.SPECULATION_HOOKS, "prepare_mamba_track_for_verify")
    prepared(None, batch)
    assert device.requests[0].marconi_run.launched == 0
    batch.spec_info = None  # the drafts' own
    prepared(None, batch)
    assert device.requests[0].marconi_run.launched == 1


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    "name", ["_update_target_mamba_state_after_verify", "_commit_target_mamba_states_after_verify"]
)
def test_a_chain_is_committed_to_the_last_own_token(
    name: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests accept four tokens; the first may have three. Without the extension SGLang's own commit."""
    device = Device([request(3, row=1), request(50, row=2)])
    batch = SimpleNamespace(
        reqs=device.requests,
        input_ids=torch.tensor([[1, 2, 3, 4]] * 2).flatten(),
        req_pool_indices=torch.tensor([1, 2]),
        seq_lens=torch.tensor([PROMPT, PROMPT]),
    )
    device.runs.launching(batch)
    monkeypatch.setattr(speculation, "runs", lambda: device.runs if live else None)
    seen: dict[str, Any] = {}
    hooked(speculation.SPECULATION_HOOKS, name)(
        lambda worker, **given: seen.update(given),
        None,
        batch=batch,
        seq_lens_pre_verify=batch.seq_lens,
        seq_lens_post_verify=batch.seq_lens + 4,
        commit_lens=torch.tensor([4, 4], dtype=torch.int32),
    )
    assert seen["commit_lens"].tolist() == ([3, 4] if live else [4, 4])
    assert seen["commit_lens"].dtype == torch.int32
    assert seen["seq_lens_post_verify"].tolist() == [PROMPT + 4] * 2
