"""How SGLang is asked for: flags, environment and model facts that demos, tests and benchmarks share.

Options are a dict of keyword arguments as `sglang.Engine(...)` takes them; `to_flags` turns the same dict
into command-line flags, so that a test in one process and a demo over HTTP run the same engine.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from marconi_ext.errors import BadInputError

CPU_PLATFORM = "marconi_cpu"
FALLBACK_CHUNK_TOKENS = 64  # of SGLang's linear-attention kernels, for configs that name no chunk
CPU_OPTIONS: dict[str, object] = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "disable_cuda_graph": True,
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
}
CPU_ENVIRONMENT = {"SGLANG_PLATFORM": CPU_PLATFORM, "SGLANG_MAMBA_CONV_DTYPE": "float32"}
LOOPBACK = ("127.0.0.1", "localhost")
FOREIGN_VARIABLES = ("SGLANG_USE_CPU_ENGINE", "SGLANG_PLATFORM", "TRITON_INTERPRET")


def to_flags(options: dict[str, object]) -> list[str]:
    """Command-line flags for options: True is a bare flag, a list several words, False and None are left out."""
    flags = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        flags.append("--" + name.replace("_", "-"))
        if value is not True:
            flags += map(str, value if isinstance(value, list) else [value])
    return flags


def environment(*, cpu: bool) -> dict[str, str]:
    """This process's environment, for a server on the CPU platform or on a GPU."""
    inherited = {key: value for key, value in os.environ.items() if key not in FOREIGN_VARIABLES}
    if cpu:
        inherited.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing, and spinning threads cost
    return inherited | loopback_direct(inherited) | (CPU_ENVIRONMENT if cpu else {})


def loopback_direct(variables: Mapping[str, str]) -> dict[str, str]:
    """What keeps a server from asking itself through the user's proxy, as SGLang's warm-up would."""
    before = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
    if before.strip() == "*":
        return {}
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(filter(None, (before, *LOOPBACK))))


def has_gpu() -> bool:
    """Whether an NVIDIA or AMD device file exists; asks no library, so it is instant and light."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def available_memory_gib() -> float:
    """Memory that new processes can have without swapping; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable")), 0.0)


class ModelFacts:
    """What a run has to know of a Hugging Face model folder's config.json.

    chunk_tokens: the scan's chunk; vocabulary: number of token ids; context_tokens: longest sequence
    """

    def __init__(self, folder: Path) -> None:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInputError(f"--model-path {folder}: no readable config.json there ({error})") from None
        try:
            config = {**config, **config.get("text_config", {})}
            chunk_tokens = config.get("chunk_size") or config.get("mamba_chunk_size")
            self.chunk_tokens = int(chunk_tokens or FALLBACK_CHUNK_TOKENS)
            self.vocabulary = int(config["vocab_size"])
            self.context_tokens = int(config.get("max_position_embeddings") or 8_192)
            self.architecture = str((config.get("architectures") or ["unknown"])[0])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"--model-path {folder}: its config.json is no model's ({error!r})") from None
