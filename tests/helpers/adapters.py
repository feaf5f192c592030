"""LoRA adapters of random weights for the small Mamba2 model, and a control whose keys don't tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from marconi_ext.models.toy_model import ToyModel

RANK = 4
ATTENTION = "*"  # in a model's pattern


def write_adapter(folder: Path, model: ToyModel, seed: int) -> Path:
    """On the attention's projections, strong enough that answers are others. Returns the folder."""
    folder.mkdir(parents=True)
    rng, tensors = np.random.default_rng(seed), {}
    queries, keys, hidden = model.heads * model.head_dim, model.kv_heads * model.head_dim, model.hidden
    sizes = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
    }
    for layer in (number for number, kind in enumerate(model.pattern) if kind == ATTENTION):
        for name, (rows, columns) in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.mixer.{name}"
            down = rng.standard_normal((RANK, columns)) * columns**-0.5
            tensors[f"{prefix}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = rng.standard_normal((rows, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(sizes),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def share_keys() -> None:
    """The control: a request's key in the radix tree leaves its adapter out. Called before an engine starts."""
    from sglang.srt.managers.schedule_batch import Req

    made = Req.__init__

    def without_adapter(self, *args, extra_key=None, **fields):
        made(self, *args, extra_key=extra_key, **fields)
        self.extra_key = extra_key

    Req.__init__ = without_adapter
