"""LoRA adapters for the small model, as PEFT writes them: of normal size, so that each says something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from marconi_ext.models.toy_model import ATTENTION, ToyModel

RANK = 4
TARGET = "o_proj"
SERVER_OPTIONS = {
    "enable_lora": True,
    "max_lora_rank": RANK,
    "lora_target_modules": TARGET,
    "max_loras_per_batch": 4,
    "lora_backend": "torch_native",
}


def write_adapter(folder: Path, model: ToyModel, seed: int) -> Path:
    """An adapter of `model`'s attention layers, drawn from `seed`. Returns: the folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer, kind in enumerate(model.pattern):
        if kind == ATTENTION:
            name = f"base_model.model.backbone.layers.{layer}.mixer.{TARGET}"
            inner = model.heads * model.head_dim
            down = rng.standard_normal((RANK, inner)) * inner**-0.5
            tensors[f"{name}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.standard_normal((model.hidden, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": [TARGET]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
