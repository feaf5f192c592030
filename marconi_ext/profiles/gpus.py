"""GPUs by name: what a roofline needs of them. Others come by the entry point group `marconi.gpus`."""

from __future__ import annotations

from dataclasses import dataclass

from marconi_ext import entry_points
from marconi_ext.errors import BadInputError


@dataclass(frozen=True)
class Gpu:
    """Dense bf16 peak and memory bandwidth, from the vendor's data sheet."""

    name: str
    flops_per_s: float
    bytes_per_s: float


GPUS = {
    "a100": Gpu("A100 SXM 80GB", 312e12, 2.04e12),
    "h100": Gpu("H100 SXM", 989e12, 3.35e12),
    "h200": Gpu("H200 SXM", 989e12, 4.8e12),
    "b200": Gpu("B200", 2250e12, 8.0e12),
    "l40s": Gpu("L40S", 362e12, 0.864e12),
    "mi300x": Gpu("MI300X", 1307e12, 5.3e12),
}


def gpu_names() -> list[str]:
    return [*GPUS, *entry_points.names(entry_points.GPUS)]


def find_gpu(name: str, flag: str = "--gpu") -> Gpu:
    """The GPU of that name, in any case. Raises BadInputError that lists what is known."""
    found = GPUS.get(name.lower()) or entry_points.load(entry_points.GPUS, name, Gpu)
    if found is None:
        raise BadInputError(f"{flag} {name}: unknown; known: {', '.join(gpu_names())}")
    return found
