"""The small seeded models by the family of their recurrence: what `--family` names. A newcomer adds a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .gdn import GdnModel
from .kda import KdaModel
from .lightning import LightningModel
from .seeded import write_folder
from .short_conv import ShortConvExpertsModel, ShortConvModel
from .toy_model import ToyModel
from .zaya import ZayaModel


class SmallModel(Protocol):
    """A model of a few layers. Equal sizes give files that are equal to the bit."""

    def config(self) -> dict[str, Any]:
        """The Hugging Face config."""
        ...

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors, fp32, under the names of the family's checkpoints."""
        ...


FAMILIES: dict[str, Callable[..., SmallModel]] = {
    "mamba2": ToyModel,
    "gdn": GdnModel,
    "kda": KdaModel,
    "lightning": LightningModel,
    "lfm2": ShortConvModel,
    "lfm2-moe": ShortConvExpertsModel,
    "zaya": ZayaModel,
}


def write_small_model(path: str | Path, model: SmallModel, *, force: bool = False) -> Path:
    """Write the model's folder and return it. Raises: FileExistsError as `write_folder` does."""
    return write_folder(path, model.config(), model.weights, force=force)
