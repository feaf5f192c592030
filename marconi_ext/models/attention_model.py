"""Write a small pure-attention model (Llama layout): the check that a harness's ideal is the engine's.

An attention-only server with ample memory must reuse exactly what `marconi_ext.results.ideal` says. Weights are
seeded and of normal size, so that answers differ from prompt to prompt.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from marconi_ext.models.seeded import LOGIT_STD
from marconi_ext.models.tekken import TEKKEN_SPECIAL_TOKENS, write_tekken

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH = 64, 2, 4, 2, 16, 128


def write_attention_model(path: Path, vocabulary: int, context: int = 131_072, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and tekken.json into the folder `path` and return it."""
    return write_attention_folder(
        path, attention_config(vocabulary, context), attention_weights(vocabulary, seed)
    )


def write_attention_folder(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Write a model's config.json, model.safetensors and tekken.json into the folder `path` and return it."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    write_tekken(path / "tekken.json", config["vocab_size"])
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return path


def attention_config(vocabulary: int, context: int = 131_072) -> dict[str, Any]:
    """The Hugging Face config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 11,
    }


def attention_weights(vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    """All tensors, fp32; standard deviation rows ** -0.5 keeps activations of size one."""
    rng = np.random.RandomState(seed)

    def normal(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * gain * columns**-0.5).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN, HIDDEN**0.5)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{prefix}.self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, HIDDEN, 2.0),
            f"{prefix}.self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN, 2.0),
            f"{prefix}.self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD_DIM, 2.0),
            f"{prefix}.mlp.gate_proj.weight": normal(WIDTH, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": normal(WIDTH, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": normal(HIDDEN, WIDTH),
        }
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    head = normal(vocabulary, HIDDEN, LOGIT_STD)
    head[:TEKKEN_SPECIAL_TOKENS] = 0.0  # greedy decoding never emits a control token
    tensors["lm_head.weight"] = head
    return tensors
