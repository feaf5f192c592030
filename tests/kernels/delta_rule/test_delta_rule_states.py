"""Gated DeltaNet and Kimi Delta Attention: states from chunk states, and exact ones from the state pass, against the
float64 recurrence."""

import math
from itertools import pairwise

import bf16_interpreter
import numpy as np
import pytest
import torch
import triton.language as tl
from kernel_cases import nan_pool, plan_for, relative_error

from marconi_kernels.delta_rule.ssm_checkpoint import (
    CHUNK_SIZE,
    gdn_states_reference,
    save_gdn_checkpoints,
    save_gdn_checkpoints_torch,
    save_gdn_checkpoints_triton,
)
from marconi_kernels.delta_rule.state_pass import (
    FUSED_BLOCK_SIZE,
    delta_state_pass,
    delta_state_pass_torch,
    delta_state_pass_triton,
)
from marconi_kernels.grouped_plan import group_by_sequence
from marconi_kernels.plan import CheckpointPlan

HEADS, KEY_HEADS, V, K = 4, 2, 24, 16
CU = [0, 70, 70 + 64, 70 + 64 + 131]
SEQ = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
END = [0, 1, 64, 70, 70, 71, 134, 134, 200, 198, 262, 265]
INITIAL = [20, -1, 21]

from_chunks = pytest.mark.parametrize("save", [save_gdn_checkpoints_triton, save_gdn_checkpoints_torch])
by_pass = pytest.mark.parametrize("run", [delta_state_pass_triton, delta_state_pass_torch])
per_key = pytest.mark.parametrize("per_key", [False, True], ids=["gdn", "kda"])


class DeltaBatch:
    """Inputs, and the chunk intermediates by dense float64 algebra (a triangular solve for each chunk).

    per_key: one decay a key channel, whose sums are kept in log2 units; fastest: largest decay a token, natural log
    """

    def __init__(self, dtype=torch.float32, seed=0, per_key=False, fastest=0.0):
        gen = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=gen)

        tokens = CU[-1]
        self.k = torch.nn.functional.normalize(randn(tokens, KEY_HEADS, K), dim=-1).to(dtype)
        self.v = randn(tokens, HEADS, V).to(dtype)
        self.g = torch.nn.functional.logsigmoid(randn(tokens, HEADS, K if per_key else 1) + 2)
        self.g[..., ::3] -= fastest
        self.unit = math.log(2) if per_key else 1.0
        self.beta = torch.sigmoid(randn(tokens, HEADS))
        self.init = randn(2, HEADS, V, K)
        self.g_cumsum = torch.empty_like(self.g)
        self.w, self.u = torch.empty(tokens, HEADS, K), torch.empty(tokens, HEADS, V)
        k = self.k.double().repeat_interleave(HEADS // KEY_HEADS, dim=1)
        for start, stop in self.chunks():
            g = self.g[start:stop].double().cumsum(0)  # [t, heads, K or 1]
            kc, beta = k[start:stop], self.beta[start:stop].double()
            decay = torch.exp(
                (g[:, None] - g[None]).clamp(max=0)
            )  # [t, s, heads, K or 1]; of use where t > s
            lower = torch.einsum("thk,shk,tshk->tsh", kc, kc, decay.expand(-1, -1, -1, K)) * beta[:, None]
            system = torch.eye(stop - start).double() + lower.permute(2, 0, 1).tril(-1)
            inverse = torch.linalg.inv(system)
            self.g_cumsum[start:stop] = (g / self.unit).float()
            scaled_k = beta[..., None] * g.exp() * kc
            self.w[start:stop] = torch.einsum("hts,shk->thk", inverse, scaled_k).float()
            scaled_v = beta[..., None] * self.v[start:stop].double()
            self.u[start:stop] = torch.einsum("hts,shv->thv", inverse, scaled_v).float()
        self.w, self.u = self.w.to(dtype), self.u.to(dtype)
        if not per_key:
            self.g, self.g_cumsum = self.g[..., 0], self.g_cumsum[..., 0]
        self.cu_seqlens = torch.tensor(CU)

    @staticmethod
    def chunks():
        for a, b in pairwise(CU):
            yield from ((t, min(t + CHUNK_SIZE, b)) for t in range(a, b, CHUNK_SIZE))

    def initial(self):
        return torch.stack([self.init[0], torch.zeros(HEADS, V, K), self.init[1]])

    def reference(self, seq=SEQ, end=END):
        return gdn_states_reference(self.k, self.v, self.g, self.beta, CU, seq, end, self.initial())

    def chunk_states(self, dtype):
        """h and v_new by the definition: states before each chunk, and what the delta rule leaves of v."""
        firsts = [start for start, _ in self.chunks()]
        owners = [max(s for s in range(3) if CU[s] <= t) for t in firsts]
        h = self.reference(owners, firsts)
        v_new = torch.empty(CU[-1], HEADS, V, dtype=torch.float64)
        for state, (start, stop) in zip(h, self.chunks(), strict=True):
            correction = torch.einsum("thk,hvk->thv", self.w[start:stop].double(), state)
            v_new[start:stop] = self.u[start:stop].double() - correction
        return h.to(dtype), v_new.to(dtype)

    def pool(self, dtype=torch.float32):
        pool = nan_pool(23, (HEADS, V, K), dtype)
        pool[20:22] = self.init
        return pool


@from_chunks
def test_from_chunk_states(save):
    batch = DeltaBatch()
    h, v_new = batch.chunk_states(torch.float32)
    pool = batch.pool()
    save(batch.k, v_new, batch.g_cumsum, h, batch.cu_seqlens, plan_for(SEQ, END, pad_to=15), pool)
    assert relative_error(pool[1:13], batch.reference()) < 2e-5
    assert pool[[0, *range(13, 20), 22]].isnan().all() and torch.equal(pool[20:22], batch.init)


@from_chunks
def test_bf16_chunk_states_cost_bf16_precision(save, monkeypatch):
    """What the engine stores: the recurrence is met to bf16's precision."""
    bf16_interpreter.install(monkeypatch)
    batch = DeltaBatch(torch.bfloat16)
    h, v_new = batch.chunk_states(torch.bfloat16)
    pool = batch.pool()
    save(batch.k, v_new, batch.g_cumsum, h, batch.cu_seqlens, plan_for(SEQ, END), pool)
    assert 1e-4 < relative_error(pool[1:13], batch.reference()) < 2e-2


def run_pass(run, batch, seq, end, *, pool=None, **outputs):
    pool = batch.pool() if pool is None else pool
    plan = group_by_sequence(plan_for(seq, end, pad_to=15), batch.cu_seqlens, pool.shape[0])
    args = (batch.k, batch.w, batch.u, batch.g_cumsum, batch.cu_seqlens, plan, pool)
    run(*args, initial_indices=torch.tensor(INITIAL), **outputs)
    return pool


@per_key
@by_pass
def test_state_pass(run, per_key):
    batch = DeltaBatch(per_key=per_key)
    h, v_new = batch.chunk_states(torch.float32)
    got_h, got_v = torch.full_like(h, float("nan")), torch.full_like(v_new, float("nan"))
    pool = run_pass(run, batch, SEQ, END, h=got_h, v_new=got_v, update_initial=True)
    assert relative_error(pool[1:13], batch.reference()) < 2e-5
    assert relative_error(got_h, h) < 2e-5
    assert relative_error(got_v[None], v_new[None]) < 2e-5
    assert relative_error(pool[20:22], batch.reference([0, 2], [CU[1], CU[3]])) < 2e-5
    assert pool[[0, *range(13, 20), 22]].isnan().all()


@by_pass
def test_state_pass_leaves_the_initial_states(run):
    batch = DeltaBatch()
    assert torch.equal(run_pass(run, batch, [0], [40])[20:22], batch.init)


@by_pass
@pytest.mark.parametrize("fastest", [1.0, 30.0])
def test_channels_that_decay_fast_neither_overflow_nor_lose_bits(run, fastest):
    """From keys scaled to the chunk's end, a state inside it would need 2^(64 · fastest), and the keys are zero."""
    batch = DeltaBatch(per_key=True, fastest=fastest)
    assert relative_error(run_pass(run, batch, SEQ, END)[1:13], batch.reference()) < 2e-5


@by_pass
def test_without_the_delta_rule(run):
    """Lightning attention: a fixed decay a head, and every token adds its own v ⊗ k."""
    batch = DeltaBatch()
    batch.w, batch.u = None, batch.v
    for start, stop in pairwise(CU):
        for block in torch.arange(start, stop).split(FUSED_BLOCK_SIZE):
            batch.g_cumsum[block] = batch.g[block].cumsum(0)
    expected = torch.zeros(len(SEQ), HEADS, V, K, dtype=torch.float64)
    for row, (seq, end) in enumerate(zip(SEQ, END, strict=True)):
        state = batch.initial()[seq].double()
        for t in range(CU[seq], end):
            keys = batch.k[t].double().repeat_interleave(HEADS // KEY_HEADS, dim=0)
            state = state * batch.g[t].double().exp()[:, None, None]
            state = state + batch.v[t].double()[:, :, None] * keys[:, None, :]
        expected[row] = state
    assert relative_error(run_pass(run, batch, SEQ, END)[1:13], expected) < 2e-5


@per_key
def test_checkpoints_have_the_bits_of_a_pass_that_ends_there(per_key):
    """Two-pass: the prefix alone, whose final state the engine would save."""
    batch = DeltaBatch(seed=2, per_key=per_key)
    whole = run_pass(delta_state_pass_triton, batch, SEQ, END)
    for row, (seq, end) in enumerate(zip(SEQ, END, strict=True)):
        tokens = slice(CU[seq], end)
        pool = batch.pool()
        empty = group_by_sequence(plan_for([], [], pad_to=1), torch.tensor([0, end - CU[seq]]), 23)
        slot = INITIAL[seq] if INITIAL[seq] >= 0 else 22
        pool[22] = 0
        delta_state_pass_triton(
            *(t[tokens] for t in (batch.k, batch.w, batch.u, batch.g_cumsum)),
            torch.tensor([0, end - CU[seq]]),
            empty,
            pool,
            initial_indices=torch.tensor([slot]),
            update_initial=True,
        )
        assert torch.equal(whole[row + 1], pool[slot]), (seq, end)


def test_bf16_chunk_states_are_near_the_exact_pass_and_no_more(monkeypatch):
    """From the same bf16 intermediates: the carried state was rounded, so the saved bits are not the pass's."""
    bf16_interpreter.install(monkeypatch)
    batch = DeltaBatch(torch.bfloat16)
    h = torch.full((6, HEADS, V, K), float("nan"), dtype=torch.bfloat16)
    v_new = torch.full((CU[-1], HEADS, V), float("nan"), dtype=torch.bfloat16)
    exact = run_pass(delta_state_pass_triton, batch, SEQ, END, h=h, v_new=v_new)
    pool = batch.pool()
    save_gdn_checkpoints_triton(batch.k, v_new, batch.g_cumsum, h, batch.cu_seqlens, plan_for(SEQ, END), pool)
    assert 1e-4 < relative_error(pool[1:13], exact[1:13]) < 5e-3


@per_key
def test_has_the_bits_of_the_engines_state_pass(monkeypatch, per_key):
    from sglang.kernels.ops.attention.fla import chunk_delta_h, op

    for module in (chunk_delta_h, op):  # aliases of tl's, which the interpreter can't replace
        monkeypatch.setattr(module, "exp", lambda x: tl.exp(x))
        monkeypatch.setattr(module, "exp2", lambda x: tl.exp2(x), raising=False)
    bf16_interpreter.round_dots_once(monkeypatch)
    batch = DeltaBatch(per_key=per_key)
    state = batch.pool()
    state[22] = 0
    keys, decay = batch.k, {"g": batch.g_cumsum[None]}
    if per_key:  # the engine's stage before scales each key to its chunk's end
        keys = batch.k.repeat_interleave(HEADS // KEY_HEADS, dim=1)
        for start, stop in batch.chunks():
            decayed = (batch.g_cumsum[stop - 1] - batch.g_cumsum[start:stop]).numpy()
            keys[start:stop] *= torch.from_numpy(np.exp2(decayed))  # with the interpreter's bits
        decay = {"gk": batch.g_cumsum[None], "use_exp2": True}
    engine_h, engine_v = chunk_delta_h.chunk_gated_delta_rule_fwd_h(
        keys[None],
        batch.w[None],
        batch.u[None],
        **decay,
        initial_state=state,
        initial_state_indices=torch.tensor([20, 22, 21]),
        cu_seqlens=batch.cu_seqlens,
    )
    h, v_new = torch.full_like(engine_h[0], float("nan")), torch.full_like(engine_v[0], float("nan"))
    pool = run_pass(delta_state_pass_triton, batch, SEQ, END, h=h, v_new=v_new, update_initial=True)
    assert torch.equal(h, engine_h[0])
    assert torch.equal(v_new, engine_v[0])
    assert torch.equal(pool[20:22], state[20:22])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("k", {"k": torch.zeros(265, 3, K)}),
        ("v_new", {"v_new": torch.zeros(265, HEADS, V + 1)}),
        ("g_cumsum", {"g_cumsum": torch.zeros(265, 1)}),
        ("h", {"h": torch.zeros(6, HEADS, V, K + 1)}),
        ("pool", {"pool": torch.zeros(23, HEADS, V)}),
        ("end", {"plan": CheckpointPlan.from_lists([0], [71], [0], device="cpu")}),
        ("seq", {"cu_seqlens": torch.tensor([0, 0, 134, 265]), "plan": plan_for([0], [0])}),
    ],
)
def test_bad_arguments_are_named(name, change):
    batch = DeltaBatch()
    h, v_new = batch.chunk_states(torch.float32)
    good = {
        "k": batch.k,
        "v_new": v_new,
        "g_cumsum": batch.g_cumsum,
        "h": h,
        "cu_seqlens": batch.cu_seqlens,
        "plan": plan_for(SEQ, END),
        "pool": batch.pool(),
    }
    with pytest.raises(ValueError, match=f"^{name}:"):
        save_gdn_checkpoints(**{**good, **change})


@pytest.mark.parametrize("name", ["w", "u", "g_cumsum"])
def test_state_pass_names_bad_arguments(name):
    batch = DeltaBatch(per_key=True)
    setattr(batch, name, getattr(batch, name)[..., :-1])
    with pytest.raises(ValueError, match=rf"^{name}:"):
        run_pass(delta_state_pass, batch, SEQ, END)
