"""A folder with the config of a real model's shape, for servers with random weights: `--load-format dummy`.

    python bench/shaped_model.py FOLDER     # NVIDIA Nemotron-H-8B: 24 Mamba2, 24 MLP and 4 attention layers

Costs of a prefill don't depend on the weights' values, so times need no download; answers mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from marconi_ext.toy_model import ToyModel, config_json

NEMOTRON_H_8B = ToyModel(
    hidden=4_096,
    pattern="M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    heads=32,
    kv_heads=8,
    head_dim=128,
    mamba_heads=128,
    mamba_head_dim=64,
    n_groups=8,
    state_size=128,
    chunk_size=128,
    mlp=21_504,
    vocab=131_072,
)


def main(folder: Path) -> None:
    """Write config.json there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(NEMOTRON_H_8B) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
