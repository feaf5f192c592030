"""A model's profile: FLOPs and bytes of a prefix, from its Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from marconi_ext.errors import BadInputError
from marconi_ext.policies.currency import Currency
from marconi_ext.profiles import paper
from marconi_ext.profiles.architectures import ARCHITECTURES
from marconi_ext.profiles.layers import LayerCost


@dataclass(frozen=True)
class ModelProfile:
    """FLOPs of L tokens are linear·L + quadratic·L²; bytes are one rank's."""

    name: str
    linear_flops: float
    quadratic_flops: float
    state_bytes: int
    kv_bytes_per_token: int
    layers: dict[str, int] = field(default_factory=dict)  # kind -> how many

    def prefix_flops(self, tokens: int) -> float:
        """Prefill FLOPs of the first `tokens` tokens."""
        return self.linear_flops * tokens + self.quadratic_flops * tokens * tokens

    def currency(self, objective: str = "flops") -> Currency:
        """What policies count in: FLOPs saved, or tokens saved, against these bytes."""
        costs = {"state_bytes": self.state_bytes, "kv_bytes_per_token": self.kv_bytes_per_token}
        if objective == "tokens":
            return Currency(**costs)
        return Currency(self.linear_flops, self.quadratic_flops, **costs)


def profile_from_config(
    config: dict, name: str = "", *, ssm_dtype: str | None = None, kv_dtype: str = "bfloat16", tp: int = 1
) -> ModelProfile:
    """Profile of a parsed `config.json`.

    ssm_dtype: dtype of recurrent states; default: the config's `mamba_ssm_dtype`, else float32, as in SGLang.
    Raises BadInputError for an architecture or a dtype that isn't known.
    """
    text = config.get("text_config", config)
    kind = text.get("model_type", "")
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise BadInputError(
            f"--model: model_type {kind!r} of {name or 'the config'} is not known; known: {known}"
        )
    sizes = {
        "ssm_dtype_bytes": _dtype_bytes(ssm_dtype or text.get("mamba_ssm_dtype") or "float32"),
        "kv_dtype_bytes": _dtype_bytes(kv_dtype),
        "tp": tp,
    }
    try:
        layers = ARCHITECTURES[kind](text, **sizes)
    except KeyError as error:
        raise BadInputError(f"--model: {name or kind}: config.json lacks {error}") from error
    total = sum((cost for _, cost in layers), LayerCost())
    return ModelProfile(
        name or kind,
        total.linear_flops,
        total.quadratic_flops,
        total.state_bytes,
        total.kv_bytes_per_token,
        dict(Counter(layer for layer, _ in layers)),
    )


def load_profile(
    model: str, *, ssm_dtype: str | None = None, kv_dtype: str = "bfloat16", tp: int = 1
) -> ModelProfile:
    """A named profile, a `config.json`, or a folder that holds one. Raises BadInputError."""
    if model == "paper-7b":
        return paper_7b()
    config, name = load_config(model)
    return profile_from_config(config, name, ssm_dtype=ssm_dtype, kv_dtype=kv_dtype, tp=tp)


def load_config(model: str) -> tuple[dict, str]:
    """The config of a named profile, a `config.json`, or a folder that holds one; and the model's name.
    Raises BadInputError."""
    bundled = resources.files("marconi_ext.profiles") / "configs" / f"{model}.json"
    path = Path(model)
    if not bundled.is_file() and not path.exists():
        raise BadInputError(
            f"--model: no profile, file or folder {model!r}; profiles: {', '.join(profile_names())}"
        )
    try:
        if bundled.is_file():
            config = json.loads(bundled.read_text(encoding="utf-8"))
        else:
            file = path / "config.json" if path.is_dir() else path
            config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"--model {model}: no readable config.json there ({error.strerror})") from None
    except ValueError as error:
        raise BadInputError(f"--model: {model}: not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("text_config", {}), dict):
        raise BadInputError(f"--model: {model}: no model's config.json: not an object")
    return config, path.name


def profile_names() -> list[str]:
    """Names that `load_profile` knows."""
    folder = resources.files("marconi_ext.profiles") / "configs"
    return [
        "paper-7b",
        *sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")),
    ]


def paper_7b() -> ModelProfile:
    """The paper's formulas as printed."""
    d, n = paper.D, paper.N
    linear = paper.MAMBA_LAYERS * (12 * d**2 + 16 * d * n + 10 * d)
    linear += paper.ATTENTION_LAYERS * 8 * d**2 + paper.MLP_LAYERS * 16 * d**2
    layers = {"mamba": paper.MAMBA_LAYERS, "attention": paper.ATTENTION_LAYERS, "mlp": paper.MLP_LAYERS}
    quadratic = paper.ATTENTION_LAYERS * 4 * d
    return ModelProfile("paper-7b", linear, quadratic, paper.STATE_BYTES, paper.KV_BYTES_PER_TOKEN, layers)


def _dtype_bytes(name: str) -> int:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}
    if name not in sizes:
        raise BadInputError(f"--ssm-dtype/--kv-dtype: {name!r} is not one of {', '.join(sizes)}")
    return sizes[name]
