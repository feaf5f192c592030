"""States saved in pieces and forks equal those of a prefill that ends at the checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_hybrid import CHANNELS, HEADS, KEY, WIDTH, Backend, Hybrid, Pool, batch_of

from marconi_kernels.torch_twins import delta_stages
from sglang_hooks.recurrence import form, gdn, kda, pieces
from sglang_hooks.recurrence.in_kernel import DeltaStages
from sglang_hooks.recurrence.interface import ArmedCheckpoints, SaverContext

LAYERS, REQUESTS, SLOTS = 2, 4, 40
torch.set_num_threads(1)
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


class Model:
    """Two recurrent layers, one after the other, each fed the tokens' own inputs."""

    def __init__(self, per_key: bool, seed: int, in_kernel: DeltaStages | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pool = Pool(LAYERS, SLOTS)
        self.backend = Backend(self.pool, torch.arange(REQUESTS), per_key)
        self.hybrid = Hybrid(self.backend)
        self.layers = [
            SimpleNamespace(layer_id=i, weight=torch.randn(CHANNELS, WIDTH, generator=generator))
            for i in range(LAYERS)
        ]
        self.streams = torch.randn(LAYERS, REQUESTS, 400, CHANNELS, generator=generator)
        width = HEADS * KEY if per_key else HEADS
        self.gates = -torch.rand(LAYERS, REQUESTS, 400, width, generator=generator) * 0.1
        self.per_key = per_key
        self.counts: Counter[str] = Counter()
        context = SaverContext(LAYERS, lambda name, n: self.counts.update({name: n}))
        self.saver = pieces.PieceSaver(context, in_kernel, kda.as_decode if per_key else gdn.as_decode)
        self.backend.saver = self.saver
        if in_kernel is not None:
            self.backend.stages = hooked(in_kernel, per_key)

    def prefill(
        self, prefixes: list[int], lengths: list[int], armed: ArmedCheckpoints | None = None
    ) -> list[torch.Tensor]:
        """One forward; outputs by layer."""
        batch = batch_of(prefixes, lengths)
        self.saver.reset()
        self.saver.begin(armed or ArmedCheckpoints())
        self.backend.init_forward_metadata(batch)
        outputs = []
        for layer in self.layers:
            spans = [(r, slice(p, p + n)) for r, (p, n) in enumerate(zip(prefixes, lengths, strict=True))]
            mixed = torch.cat([self.streams[layer.layer_id, r, span] for r, span in spans])
            gates = torch.cat([self.gates[layer.layer_id, r, span] for r, span in spans])
            arguments = {"q": None, "mixed_qkv": mixed, "a": gates.unsqueeze(0) if self.per_key else gates}
            outputs.append(
                self.saver.run_layer(Hybrid.forward_extend, self.hybrid, layer, batch, True, arguments)
            )
        return outputs

    def states(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pool.conv[:, slot].clone(), self.pool.temporal[:, slot].clone()


def hooked(stages: DeltaStages, per_key: bool) -> dict[str, Callable]:
    """The pipeline's stages as the hooks leave them."""
    names = ("g", "gk", "track_state", "track_chunk_idx", "chunk_offsets")

    def state_pass(**given):
        given = dict.fromkeys(names) | {"inplace_update": True, "save_new_value": True} | given
        return stages.state_stage(delta_stages.chunk_gated_delta_rule_fwd_h, given)

    def intra(**given):
        stages.solving(given["k"])
        return delta_stages.chunk_kda_fwd_intra(**given)

    return {"state_pass": state_pass} | ({"intra": intra} if per_key else {})


def arm(lengths: list[int], rows: list[int], offsets: list[int]) -> ArmedCheckpoints:
    armed = ArmedCheckpoints()
    for number, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        armed.add(row, offset, sum(lengths[:row]) + offset, torch.tensor([REQUESTS + number]))
    return armed


def take_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(form.VARIABLE, form.KERNEL)
    monkeypatch.setattr(pieces, "choose", lambda *args: True)


FORMS = {
    "cuts": {"fork_tokens": 0},
    "both": {"fork_tokens": 30},
    "forks": {"fork_tokens": 10_000},
    "steps": {"fork_tokens": 30, "step_tokens": 0},
    "in-place": None,
    "beside": None,
}


@pytest.mark.parametrize("way", FORMS)
@pytest.mark.parametrize("per_key", [False, True], ids=["gdn", "kda"])
def test_random_batches(per_key: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged, chained extends with duplicate positions, 0- and 1-token rows, and checkpoints at ends."""
    plan, bounds = pieces.plan_pieces, FORMS[way]
    stages = None
    if bounds is None:
        stages = DeltaStages(("", ""), window_first=False)
        stages.in_place = way == "in-place"
        take_the_kernel(monkeypatch)
    else:
        monkeypatch.setattr(pieces, "plan_pieces", lambda *args, **_: plan(*args, **bounds))
    rng = np.random.default_rng(list(FORMS).index(way))
    seen: Counter[str] = Counter()
    for case in range(4):
        one, plain = Model(per_key, case, stages), Model(per_key, case)
        prefixes = [0] * REQUESTS
        for _ in range(2):
            lengths = [int(rng.choice([0, 1, 2, int(rng.integers(3, 150))])) for _ in range(REQUESTS)]
            lengths[case % REQUESTS] = int(rng.integers(70, 150))
            rows, offsets = [], []
            for row, length in enumerate(lengths):
                for offset in rng.integers(1, length + 1, rng.integers(0, 5)) if length else ():
                    rows.append(row)
                    offsets.append(int(rng.choice([int(offset), length, max(length - 1, 1)])))
            before = [plain.states(r) for r in range(REQUESTS)]
            outputs = one.prefill(prefixes, lengths, arm(lengths, rows, offsets))
            assert not rows or one.saver.missed() is None
            for ours, expected in zip(outputs, plain.prefill(prefixes, lengths), strict=True):
                torch.testing.assert_close(ours, expected, **TOLERANCE)
                assert stages is None or torch.equal(ours, expected)
            after = [plain.states(r) for r in range(REQUESTS)]
            for number, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
                restore(plain, before)
                cut = [offset if r == row else 0 for r in range(REQUESTS)]
                plain.prefill(prefixes, cut)
                for saved, expected in zip(one.states(REQUESTS + number), plain.states(row), strict=True):
                    torch.testing.assert_close(saved, expected, **TOLERANCE)
                assert torch.equal(
                    one.states(REQUESTS + number)[0], plain.states(row)[0]
                )  # windows: to the bit
                if offset > 1:  # the state one token early is another
                    restore(plain, before)
                    plain.prefill(prefixes, [max(n - 1, 0) for n in cut])
                    error = (one.states(REQUESTS + number)[1] - plain.states(row)[1]).abs().max()
                    assert error > 100 * TOLERANCE["atol"]
            restore(plain, after)
            for row in range(REQUESTS):
                for running, expected in zip(one.states(row), after[row], strict=True):
                    torch.testing.assert_close(running, expected, **TOLERANCE)
            prefixes = [p + n for p, n in zip(prefixes, lengths, strict=True)]
        seen.update(one.counts)
    assert (seen["extend_cuts"] > 0) == (way in ("cuts", "both", "steps"))
    assert (seen["extend_forks"] > 0) == (way in ("both", "forks", "steps"))
    assert (seen["extend_steps"] > 0) == (way == "steps")
    assert (seen["states_saved_in_kernel"] > 0) == (stages is not None)


def restore(model: Model, states: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for row, (conv, temporal) in enumerate(states):
        model.pool.conv[:, row], model.pool.temporal[:, row] = conv, temporal


def test_the_backend_is_left_as_it_was() -> None:
    model = Model(False, 0)
    lengths = [100, 20, 0, 1]
    model.backend.init_forward_metadata(batch_of([0] * 4, lengths))
    model.prefill([0] * 4, lengths, arm(lengths, [0, 0], [40, 90]))
    assert model.backend.forward_metadata.query_start_loc.tolist() == [0, 100, 120, 120, 121]
    assert model.backend.forward_metadata.mamba_cache_indices.tolist() == [0, 1, 2, 3]


def test_a_fork_leaves_the_outputs_to_the_bit() -> None:
    """No cut: the chunks lie where they always do."""
    forked, plain = Model(False, 0), Model(False, 0)
    lengths = [100, 20, 0, 1]
    for ours, expected in zip(
        forked.prefill([0] * 4, lengths, arm(lengths, [0, 0], [40, 90])),
        plain.prefill([0] * 4, lengths),
        strict=True,
    ):
        assert torch.equal(ours, expected)
    assert forked.counts["extend_forks"] == 2


def test_a_missed_layer_is_said() -> None:
    model = Model(False, 0)
    model.layers.pop()
    model.prefill([0] * 4, [10, 0, 0, 0], arm([10, 0, 0, 0], [0], [10]))
    assert model.saver.missed() == "1 prefills of 2 recurrent layers"


def test_a_layer_past_our_kernel_is_said_and_pieces_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    take_the_kernel(monkeypatch)
    model, plain = Model(False, 0, DeltaStages(("", ""), window_first=False)), Model(False, 0)
    model.backend.stages = {}  # as if SGLang took another pipeline
    lengths = [70, 5, 2, 1]
    model.prefill([0] * 4, lengths, arm(lengths, [0, 1], [40, 3]))
    assert model.saver.missed() == "0 prefills of 2 recurrent layers"
    plain.prefill([0] * 4, lengths)
    model.prefill(lengths, lengths, arm(lengths, [0, 1], [40, 3]))
    assert model.saver.missed() is None and model.counts["extend_forks"] == 2
    plain.prefill(lengths, [40, 3, 2, 1])
    for saved, expected in zip(model.states(REQUESTS), plain.states(0), strict=True):
        torch.testing.assert_close(saved, expected, **TOLERANCE)
