"""Small models that draft for a small hybrid: a model of its own (STANDALONE), and an EAGLE3 head.

Both have the hybrid's embeddings and its head, and hardly add anything: they guess what the last token alone says of
the next. A hybrid whose embeddings outweigh its layers (`embedding_scale`) often agrees. That is constructed, and
says nothing of real drafts.
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

CAPTURED_LAYERS = (0, 1, 2)  # whose outputs an EAGLE3 head reads


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
