"""What `marconi demo`, `bench` and `verify` set up alike before they start servers, and take down again."""

import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.models.attention_model import write_attention_model
from marconi_ext.models.families import FAMILIES, SmallModel, write_small_model
from marconi_ext.results.provenance import engine_command
from marconi_ext.servers.arms import Arm, choose_arms
from marconi_ext.servers.engine_options import ModelFacts, available_memory_gib, has_gpu

SERVER_GIB = 4  # memory of a server without its weights: three processes of SGLang


def require_engine() -> None:
    """Raise CheckFailedError before anything is written where SGLang isn't installed."""
    if find_spec("sglang") is None:
        raise CheckFailedError(f"this starts SGLang servers, and SGLang is not installed: {engine_command()}")


@dataclass(frozen=True)
class Setup:
    """model: the folder of the model, own or small; cpu: where servers run; scratch: folder that goes at the end"""

    model: Path
    facts: ModelFacts
    cpu: bool
    scratch: Path

    def room_for(self, servers: int) -> bool:
        """Whether so many servers fit into this machine's memory together. On a GPU each wants it for itself: no."""
        weights = sum(file.stat().st_size for file in self.model.glob("*.safetensors")) / 2**30
        # Weights in float32, and read once more while they load.
        return self.cpu and available_memory_gib() > servers * (SERVER_GIB + 3 * weights)

    def arms(self, names: str) -> tuple[list[Arm], Path | None]:
        """The arms of `--arms`, and the attention-only model's folder if one of them serves it."""
        chosen = choose_arms(names, self.facts.chunk_tokens)
        if not any(arm.attention_only for arm in chosen):
            return chosen, None
        return chosen, write_attention_model(self.scratch / "toy-attention", self.facts.vocabulary)


@contextmanager
def prepared(model_path: Path | None, cpu: bool | None, small: SmallModel | None = None) -> Iterator[Setup]:
    """The model and where it runs. A SIGTERM meanwhile ends this process as an exit does: servers are stopped.

    model_path: None for a small model, `small` or that of Mamba2; cpu: None for what the machine has
    """
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="marconi-model-") as folder:
        model = model_path or write_small_model(Path(folder) / "toy-hybrid", small or small_model())
        on_cpu = cpu if cpu is not None else not (model_path and has_gpu())
        yield Setup(model, ModelFacts(model), on_cpu, Path(folder))


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit, so that what is open is closed."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def small_model(family: str = "mamba2", flags: str = "", **sizes: Any) -> SmallModel:
    """A family's small model, with other sizes. Raises BadInputError that begins with `flags`, those that set them."""
    if family not in FAMILIES:
        raise BadInputError(f"--family {family}: choose from {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family](**sizes)
    except ValueError as error:
        raise BadInputError(f"{flags}: {error}") from None
    except TypeError:
        raise BadInputError(f"{flags}: the small model of family {family} has no such size") from None


def split_flags(text: str) -> tuple[str, ...]:
    """The words of `--server-flags`, quoted as in a shell. Raises BadInputError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BadInputError(f"--server-flags {text!r}: {error}") from None
