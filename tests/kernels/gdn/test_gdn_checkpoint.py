"""Gated DeltaNet: states from chunk states, and exact ones from the state pass, against the float64 recurrence."""

from itertools import pairwise

import bf16_interpreter
import pytest
import torch
import triton.language as tl
from kernel_cases import nan_pool, plan_for, relative_error

from marconi_kernels.gdn.ssm_checkpoint import (
    CHUNK_SIZE,
    gdn_states_reference,
    save_gdn_checkpoints,
    save_gdn_checkpoints_torch,
    save_gdn_checkpoints_triton,
)
from marconi_kernels.gdn.state_pass import gdn_state_pass, gdn_state_pass_torch, gdn_state_pass_triton
from marconi_kernels.grouped_plan import group_by_sequence
from marconi_kernels.plan import CheckpointPlan

HEADS, KEY_HEADS, V, K = 4, 2, 24, 16
CU = [0, 70, 70 + 64, 70 + 64 + 131]
SEQ = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
END = [0, 1, 64, 70, 70, 71, 134, 134, 200, 198, 262, 265]
INITIAL = [20, -1, 21]

from_chunks = pytest.mark.parametrize("save", [save_gdn_checkpoints_triton, save_gdn_checkpoints_torch])
by_pass = pytest.mark.parametrize("run", [gdn_state_pass_triton, gdn_state_pass_torch])


class GdnBatch:
    """Inputs, and the chunk intermediates by dense float64 algebra (a triangular solve for each chunk)."""

    def __init__(self, dtype=torch.float32, seed=0):
        gen = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=gen)

        tokens = CU[-1]
        self.k = torch.nn.functional.normalize(randn(tokens, KEY_HEADS, K), dim=-1).to(dtype)
        self.v = randn(tokens, HEADS, V).to(dtype)
        self.g = torch.nn.functional.logsigmoid(randn(tokens, HEADS) + 2)
        self.beta = torch.sigmoid(randn(tokens, HEADS))
        self.init = randn(2, HEADS, V, K)
        self.g_cumsum = torch.empty_like(self.g)
        self.w, self.u = torch.empty(tokens, HEADS, K), torch.empty(tokens, HEADS, V)
        k = self.k.double().repeat_interleave(HEADS // KEY_HEADS, dim=1)
        for start, stop in self.chunks():
            g = self.g[start:stop].double().cumsum(0)
            kc, beta = k[start:stop], self.beta[start:stop].double()
            decay = torch.exp(g[:, None] - g[None])  # [t, s, heads]
            lower = torch.einsum("thk,shk->tsh", kc, kc) * decay * beta[:, None]
            system = torch.eye(stop - start).double() + lower.permute(2, 0, 1).tril(-1)
            inverse = torch.linalg.inv(system)
            self.g_cumsum[start:stop] = g.float()
            scaled_k = beta[..., None] * g.exp()[..., None] * kc
            self.w[start:stop] = torch.einsum("hts,shk->thk", inverse, scaled_k).float()
            scaled_v = beta[..., None] * self.v[start:stop].double()
            self.u[start:stop] = torch.einsum("hts,shv->thv", inverse, scaled_v).float()
        self.w, self.u = self.w.to(dtype), self.u.to(dtype)
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
    batch = GdnBatch()
    h, v_new = batch.chunk_states(torch.float32)
    pool = batch.pool()
    save(batch.k, v_new, batch.g_cumsum, h, batch.cu_seqlens, plan_for(SEQ, END, pad_to=15), pool)
    assert relative_error(pool[1:13], batch.reference()) < 2e-5
    assert pool[[0, *range(13, 20), 22]].isnan().all() and torch.equal(pool[20:22], batch.init)


@from_chunks
def test_bf16_chunk_states_cost_bf16_precision(save, monkeypatch):
    """What the engine stores: the recurrence is met to bf16's precision."""
    bf16_interpreter.install(monkeypatch)
    batch = GdnBatch(torch.bfloat16)
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


@by_pass
def test_state_pass(run):
    batch = GdnBatch()
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
    batch = GdnBatch()
    assert torch.equal(run_pass(run, batch, [0], [40])[20:22], batch.init)


def test_checkpoints_have_the_bits_of_a_pass_that_ends_there():
    """Two-pass: the prefix alone, whose final state the engine would save."""
    batch = GdnBatch(seed=2)
    whole = run_pass(gdn_state_pass_triton, batch, SEQ, END)
    for row, (seq, end) in enumerate(zip(SEQ, END, strict=True)):
        tokens = slice(CU[seq], end)
        pool = batch.pool()
        empty = group_by_sequence(plan_for([], [], pad_to=1), torch.tensor([0, end - CU[seq]]), 23)
        slot = INITIAL[seq] if INITIAL[seq] >= 0 else 22
        pool[22] = 0
        gdn_state_pass_triton(
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
    batch = GdnBatch(torch.bfloat16)
    h = torch.full((6, HEADS, V, K), float("nan"), dtype=torch.bfloat16)
    v_new = torch.full((CU[-1], HEADS, V), float("nan"), dtype=torch.bfloat16)
    exact = run_pass(gdn_state_pass_triton, batch, SEQ, END, h=h, v_new=v_new)
    pool = batch.pool()
    save_gdn_checkpoints_triton(batch.k, v_new, batch.g_cumsum, h, batch.cu_seqlens, plan_for(SEQ, END), pool)
    assert 1e-4 < relative_error(pool[1:13], exact[1:13]) < 5e-3


def test_agrees_with_the_engines_state_pass(monkeypatch):
    from sglang.kernels.ops.attention.fla import chunk_delta_h, op

    for module in (chunk_delta_h, op):  # an alias of tl.exp, which the interpreter can't replace
        monkeypatch.setattr(module, "exp", lambda x: tl.exp(x))
    batch = GdnBatch()
    state = batch.pool()
    state[22] = 0
    engine_h, engine_v = chunk_delta_h.chunk_gated_delta_rule_fwd_h(
        batch.k[None],
        batch.w[None],
        batch.u[None],
        g=batch.g_cumsum[None],
        initial_state=state,
        initial_state_indices=torch.tensor([20, 22, 21]),
        cu_seqlens=batch.cu_seqlens,
    )
    h, v_new = torch.full_like(engine_h[0], float("nan")), torch.full_like(engine_v[0], float("nan"))
    pool = run_pass(gdn_state_pass_triton, batch, SEQ, END, h=h, v_new=v_new, update_initial=True)
    assert relative_error(h, engine_h[0]) < 1e-5
    assert relative_error(v_new[None], engine_v) < 1e-5
    assert relative_error(pool[20:22], state[20:22]) < 1e-5


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
    batch = GdnBatch()
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


def test_state_pass_names_bad_arguments():
    batch = GdnBatch()
    batch.w = batch.w[:-1]
    with pytest.raises(ValueError, match=r"^w:"):
        run_pass(gdn_state_pass, batch, SEQ, END)
