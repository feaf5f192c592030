"""A folder with the config of a real model's shape, for servers with random weights: `--load-format dummy`.

    python bench/shaped_model.py FOLDER     # NVIDIA Nemotron-H-8B: 24 Mamba2, 24 MLP and 4 attention layers

Costs of a prefill don't depend on the weights' values, so times need no download; answers mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from marconi_ext.models.toy_model import ToyModel, config_json

CONFIG = Path(__file__).parents[1] / "marconi_ext/profiles/configs/nemotron-h-8b.json"


def shape(config: dict) -> ToyModel:
    """The sizes of a NemotronH model's config.json."""
    return ToyModel(
        hidden=config["hidden_size"],
        pattern=config["hybrid_override_pattern"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["attention_head_dim"],
        mamba_heads=config["mamba_num_heads"],
        mamba_head_dim=config["mamba_head_dim"],
        n_groups=config["n_groups"],
        state_size=config["ssm_state_size"],
        chunk_size=config["chunk_size"],
        mlp=config["intermediate_size"],
        vocab=config["vocab_size"],
    )


def main(folder: Path) -> None:
    """Write config.json there."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = shape(json.loads(CONFIG.read_text(encoding="utf-8")))
    config = config_json(sizes) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
