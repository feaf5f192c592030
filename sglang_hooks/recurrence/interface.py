"""What the extension has to know of a recurrence, and how a new one is added.

A family is one object of class `Recurrence` in a file of this folder, and one line in `registry.FAMILIES`. It names
the backend classes and the architectures that it serves, says what a state consists of, brings the patches that it
needs, and makes the saver that writes the states during a prefill.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from marconi_kernels.plan import CheckpointPlan

if TYPE_CHECKING:
    from ..hooks import Hook


@dataclass(frozen=True)
class ArmedCheckpoints:
    """What the forward pass that is being launched must save: N rows.

    row: index of the request in the batch
    offset: tokens of the request's extend that the state stands for, at least 1
    flat_end: the same as an index into the batch's tokens, one past the last
    slot: int64[1] tensors, rows of the state pool, not yet translated
    """

    row: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    flat_end: list[int] = field(default_factory=list)
    slot: list[torch.Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row)

    def add(self, row: int, offset: int, flat_end: int, slot: torch.Tensor) -> None:
        self.row.append(row)
        self.offset.append(offset)
        self.flat_end.append(flat_end)
        self.slot.append(slot)

    def physical_slots(self, pool: Any) -> torch.Tensor:
        """int64[N]: rows of the pool's tensors, on its device. pool: SGLang's HybridReqToTokenPool."""
        return pool.translate_mamba_indices(torch.cat(self.slot)).to(torch.int64)

    def plan(self, pool: Any) -> CheckpointPlan:
        """The rows on the pool's device, as our kernels take them. Slot ids stay there: reading them would wait for
        the stream; on a CPU there is nothing to wait for, so they are read once for all layers."""
        slots = self.physical_slots(pool)
        on_host = slots.device.type == "cpu"
        return CheckpointPlan(
            seq=torch.tensor(self.row, dtype=torch.int32).to(slots.device, non_blocking=True),
            end=torch.tensor(self.flat_end, dtype=torch.int64).to(slots.device, non_blocking=True),
            slot=slots,
            host_rows=tuple(zip(self.row, self.flat_end, slots.tolist(), strict=True)) if on_host else None,
        )


class StateSaver(ABC):
    """Writes the armed states while the layers run. One lives in a scheduler process, and one forward runs at a
    time, so a saver may keep that forward's state in its attributes."""

    @abstractmethod
    def begin(self, armed: ArmedCheckpoints) -> None:
        """A forward pass is about to be launched; empty where it has nothing to save."""

    @abstractmethod
    def missed(self) -> str | None:
        """After the launch: which layers haven't saved their states, or None. What was missed isn't published."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the forward pass."""


@dataclass(frozen=True)
class SaverContext:
    """What a saver is made from.

    num_layers: layers with a recurrent state
    count: count(name, n) adds to a counter of the process
    """

    num_layers: int
    count: Callable[[str, int], None]


@dataclass(frozen=True)
class Recurrence:
    """One family of recurrent layers.

    name: as users and the log see it
    state: what a layer's state of one sequence consists of
    method: how it is saved, in a few words
    backends: the backend classes, `module.Class`; only these, for a subclass may compute elsewhere
    architectures: what SGLang 0.5.23 serves on them, as config.json names it
    refused: architecture → why its states would be wrong although its backend class is one of ours
    hooks: names of SGLang that are patched for this family
    saver: makes the one that writes the states
    untracked: architectures whose states SGLang doesn't track during decode, so that it gives them no extra buffer;
        ours then keeps a request's last state where its length is a page multiple, as any is at page size 1
    speculates: answers with speculative decoding were held against the cache off
    chains_only: SGLang verifies this family's drafts as a chain, so that its own answers are wrong where they branch
    untried: speculative algorithms with which they were not, for want of a small model that SGLang runs with them
    unverified: architectures of which SGLang keeps no states while it verifies drafts
    tested: architecture → what has run, for the table of models
    """

    name: str
    state: str
    method: str
    backends: tuple[str, ...]
    architectures: tuple[str, ...]
    hooks: tuple[Hook, ...]
    saver: Callable[[SaverContext], StateSaver]
    refused: Mapping[str, str] = field(default_factory=dict)
    untracked: tuple[str, ...] = ()
    speculates: bool = False
    chains_only: bool = False
    untried: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    tested: Mapping[str, str] = field(default_factory=dict)

    def serves(self, backend: object) -> bool:
        """By exact class: NPU and XPU subclass some of them, and compute with kernels of their own."""
        kind = type(backend)
        return f"{kind.__module__}.{kind.__qualname__}" in self.backends

    def conflict_with(self, arguments: Any, architecture: str) -> str | None:
        """What in a server's resolved arguments goes against exact states of this model, or None."""
        algorithm = getattr(arguments, "speculative_algorithm", None)
        if algorithm is None:
            return None
        if architecture in self.unverified:
            return f"SGLang 0.5.23 keeps no states of {architecture} during a verify: drop --speculative-algorithm"
        if not self.speculates:
            return f"{self.name} was not held against the cache off with --speculative-algorithm: drop it"
        if algorithm in self.untried:
            return f"{self.name} was not held against the cache off with {algorithm}: drop --speculative-algorithm"
        branches = algorithm == "NGRAM" or (getattr(arguments, "speculative_eagle_topk", None) or 1) > 1
        if self.chains_only and branches:
            return (
                f"SGLang 0.5.23 verifies the drafts of {self.name} as a chain, and answers wrongly where they branch: "
                "drop --speculative-algorithm NGRAM, or --speculative-eagle-topk above 1"
            )
        return None
