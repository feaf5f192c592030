"""Another architecture on the real engine: Falcon-H1, with attention and Mamba2 side by side in every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from live_server import running

from marconi_ext.traces.script import draw_tokens

pytestmark = pytest.mark.engine

VOCABULARY = 4_096


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Falcon-H1 of random weights that remembers long: with its usual decay a wrong state would fade."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_n_groups": 2}
    mamba |= {"mamba_d_state": 16, "mamba_chunk_size": 64}
    config = FalconH1Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        max_position_embeddings=8_192,
        initializer_range=0.3,
        **attention,
        **mamba,
    )
    torch.manual_seed(0)
    model = FalconH1ForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-6, -2)
    folder = tmp_path_factory.mktemp("models") / "falcon-h1"
    model.save_pretrained(folder)
    return folder


def test_hits_are_exact_and_outputs_those_of_an_empty_cache(falcon: Path) -> None:
    ids = draw_tokens(np.random.default_rng(0), 600, VOCABULARY).tolist()
    system = ids[:150]
    prompts = [ids[:200], [*system, *ids[300:350]], [*system, *ids[400:460]], [*ids[:200], *ids[500:530]]]
    with running(falcon, marconi_eviction="exact+lru") as live:  # saves nothing on a guess
        alone = []
        for prompt in prompts:
            live.server.flush_cache()
            alone.append(live.generate(prompt, 6))
        live.server.flush_cache()
        shared = [live.generate(prompt, 6) for prompt in prompts]
        live.assert_nothing_leaked()
    assert [answer.cached_tokens for answer in alone] == [0, 0, 0, 0]
    assert [answer.cached_tokens for answer in shared] == [0, 0, 150, 199]
    for one, other in zip(shared, alone, strict=True):
        assert one.output_ids == other.output_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4, rtol=0)
