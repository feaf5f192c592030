"""Small models that draft for a small hybrid: a model of its own (STANDALONE), an EAGLE3 head, and drafts of a block
(DFLASH, DSPARK).

The first two have the hybrid's embeddings and its head, and hardly add anything: they guess what the last token alone
says of the next. A hybrid whose embeddings outweigh its layers (`embedding_scale`) often agrees. That is constructed,
and says nothing of real drafts. Blocks are drafted at random: what is right of them is chance.
"""

from pathlib import Path

import numpy as np

from marconi_ext.models.attention_model import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    WIDTH,
    attention_config,
    attention_weights,
    write_attention_folder,
)
from marconi_ext.models.seeded import DRAFT_GAIN, Seeded

CAPTURED_LAYERS = (0, 1, 2)  # whose outputs an EAGLE3 head and a draft of a block read
MASK_TOKEN = 3  # stands where a draft of a block is to fill in; a control token, which no answer has
MARKOV_RANK = 8


def write_standalone_draft(path: Path, vocabulary: int, embedding_scale: int = 1, seed: int = 0) -> Path:
    """A pure-attention model for a hybrid of this width, vocabulary, scale and seed. Returns `path`."""
    tensors = attention_weights(vocabulary, seed) | Seeded(seed).embeddings(vocabulary, HIDDEN)
    tensors["model.embed_tokens.weight"] *= embedding_scale
    for layer in range(LAYERS):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{layer}.{name}.weight"] *= DRAFT_GAIN
    return write_attention_folder(path, attention_config(vocabulary), tensors)


def write_eagle3_draft(path: Path, vocabulary: int, seed: int = 0) -> Path:
    """An EAGLE3 head, whose one layer has the last token's embedding from attention alone. Returns `path`."""
    config = attention_config(vocabulary) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "num_key_value_heads": HEADS,
        "draft_vocab_size": vocabulary,
        "norm_output": True,
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": list(CAPTURED_LAYERS),
        },
    }
    seeded, layer = Seeded(seed), "midlayer"
    whole = np.eye(HIDDEN, 2 * HIDDEN, dtype=np.float32)  # the embedding, of embedding and state
    assert HEADS * HEAD_DIM == HIDDEN
    tensors = {
        **seeded.linear("fc", HIDDEN, HIDDEN * len(CAPTURED_LAYERS), 0.01),
        f"{layer}.self_attn.q_proj.weight": 3 * whole,  # sharp: a token sees itself
        f"{layer}.self_attn.k_proj.weight": 3 * whole,
        f"{layer}.self_attn.v_proj.weight": whole,
        f"{layer}.self_attn.o_proj.weight": 4 * np.eye(HIDDEN, dtype=np.float32),
        **seeded.linear(f"{layer}.mlp.gate_proj", WIDTH, HIDDEN),
        **seeded.linear(f"{layer}.mlp.up_proj", WIDTH, HIDDEN),
        **seeded.linear(f"{layer}.mlp.down_proj", HIDDEN, WIDTH, DRAFT_GAIN),
        "lm_head.weight": seeded.head(vocabulary, HIDDEN),
    }
    norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    for norm in ("norm", *(f"{layer}.{name}" for name in norms)):
        tensors[f"{norm}.weight"] = np.ones(HIDDEN, np.float32)
    return write_attention_folder(path, config, tensors)


def write_dflash_draft(path: Path, vocabulary: int, block: int, seed: int = 0) -> Path:
    """A DFLASH draft: two layers that fill a block of `block` tokens, the first of them known, from the target's
    hidden states. It borrows the target's embeddings and head. Returns `path`."""
    return _write_block_draft(
        path, vocabulary, {"architectures": ["DFlashDraftModel"], "block_size": block}, {}, seed
    )


def write_dspark_draft(path: Path, vocabulary: int, drafted: int, seed: int = 0) -> Path:
    """A DSPARK draft: the same that drafts `drafted` tokens, one after the other in its last step. Returns `path`."""
    config = {
        "architectures": ["Qwen3DSparkModel"],
        "block_size": drafted,
        "markov_rank": MARKOV_RANK,
        "markov_head_type": "vanilla",
    }
    seeded = Seeded(seed)
    head = {
        "markov_head.markov_w1.weight": seeded.normal("markov_w1", vocabulary, MARKOV_RANK, std=1.0),
        **seeded.linear("markov_head.markov_w2", vocabulary, MARKOV_RANK),
    }
    return _write_block_draft(path, vocabulary, config, head, seed)


def _write_block_draft(
    path: Path, vocabulary: int, config: dict[str, object], head: dict[str, np.ndarray], seed: int
) -> Path:
    """config, head: what the kind of draft adds."""
    captured = {"mask_token_id": MASK_TOKEN, "target_layer_ids": list(CAPTURED_LAYERS)}
    weights = attention_weights(vocabulary, seed)
    tensors = {name.removeprefix("model."): weights[name] for name in weights if ".layers." in name} | head
    for layer in range(LAYERS):
        for norm in ("q_norm", "k_norm"):
            tensors[f"layers.{layer}.self_attn.{norm}.weight"] = np.ones(HEAD_DIM, np.float32)
    for norm in ("norm", "hidden_norm"):
        tensors[f"{norm}.weight"] = np.ones(HIDDEN, np.float32)
    tensors |= Seeded(seed).linear("fc", HIDDEN, HIDDEN * len(CAPTURED_LAYERS))
    return write_attention_folder(
        path, attention_config(vocabulary) | config | {"dflash_config": captured}, tensors
    )
