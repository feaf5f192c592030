"""Which way states inside an extend are saved: in the layer's own kernels, or in pieces and forks.

Pieces, until it is asked for otherwise: no GPU has run our kernel in SGLang's pipelines yet. With
`MARCONI_STATE_FORM=kernel` it is tried, once a process, at the first forward that has such a state, and the log says
why it was taken or not. It takes fewer launches and leaves the outputs as they are, but it needs SGLang's own Triton
stages, and a kernel of ours that is right on this device. So the family's prefill runs on random inputs at the layer's
shape, and each state is held against that of a prefill that ends there. Ours stands in place of the engine's stage only
if all outputs keep their bits. No clock runs here: it would say one thing on one rank and another on the next. What a
cut and a fork cost was measured beforehand (`bench/cut_or_fork.py`), and is a constant of `piece_plan.py`.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from marconi_kernels.plan import CheckpointPlan

from .in_kernel import InKernel, Trial

logger = logging.getLogger(__name__)

VARIABLE, PIECES, KERNEL = "MARCONI_STATE_FORM", "pieces", "kernel"
LENGTHS = (150, 64, 1, 97)
ENDS = ((2, 64, 65, 149), (63,), (), (32, 32, 96))
TOLERANCES = {torch.float32: 1e-4}  # of a pool in less precision: a few of its roundings
LOW_PRECISION = 1e-2


@dataclass(frozen=True)
class Held:
    """What a trial says, as relative L2. error: of the worst state; outputs: of the outputs, or of the running states
    where these differ more"""

    error: float
    outputs: float

    @property
    def same_outputs(self) -> bool:
        """To the bit, and the running states with them."""
        return self.outputs == 0.0


def kernel_wanted() -> bool:
    """Whether the server's environment asks to try the kernel. Raises: ValueError for a value that says nothing."""
    wanted = os.environ.get(VARIABLE) or PIECES
    if wanted not in (PIECES, KERNEL):
        raise ValueError(f"{VARIABLE} must be {PIECES} or {KERNEL}; got {wanted!r}")
    return wanted == KERNEL


def choose(in_kernel: InKernel, backend: Any, layer: Any, arguments: dict[str, Any]) -> bool:
    """Whether states go through `in_kernel`; sets whether it stands in place of the engine's stage. Logs why."""
    reason = in_kernel.why_not(backend)
    if reason is None:
        try:
            reason = tried(in_kernel, in_kernel.trial(backend, layer, arguments))
        except Exception as error:  # a kernel that can't be compiled here must not end the server
            reason = f"the trial failed: {type(error).__name__}: {error}"
    if reason is None:
        return True
    logger.warning("marconi-ext: states inside an extend are saved in pieces and forks: %s", reason)
    return False


def tried(in_kernel: InKernel, trial: Trial) -> str | None:
    """Set in_kernel.in_place, and say why pieces are the better way, or None."""
    in_kernel.in_place = in_kernel.has_stages
    found = held(trial)
    if in_kernel.in_place and not found.same_outputs:
        in_kernel.in_place = False
        found = held(trial)
    if not found.same_outputs or not found.error <= TOLERANCES.get(trial.pool.dtype, LOW_PRECISION):
        return f"our kernel's states are off by {found.error:.1e} on this device"
    where = (
        "in place of SGLang's pass through the states" if in_kernel.in_place else "beside SGLang's kernels"
    )
    logger.info(
        "marconi-ext: states inside an extend are saved in the kernel, %s: they are those of a prefill that ends there "
        "to %.0e, outputs to the bit",
        where,
        found.error,
    )
    return None


def held(trial: Trial) -> Held:
    """Run the trial: a ragged batch with states, without them, and cut off at each of them."""
    rows = [(seq, end) for seq, ends in enumerate(ENDS) for end in ends]
    first = [sum(LENGTHS[:seq]) for seq in range(len(LENGTHS))]
    slots = [len(LENGTHS) + number for number in range(len(rows))]
    device = trial.pool.device
    plan = CheckpointPlan.from_lists(
        [seq for seq, _ in rows], [first[seq] + end for seq, end in rows], slots, device=device
    )
    plain, saved = trial.pool.clone(), trial.pool.clone()
    expected, outputs = trial.prefill(plain, LENGTHS, None), trial.prefill(saved, LENGTHS, plan)
    running = len(LENGTHS)
    changes = [_distance(outputs, expected), _distance(saved[:running], plain[:running])]
    errors = [0.0]
    for number in range(max(map(len, ENDS))):
        pool = trial.pool.clone()
        # SGLang counts the chunks of a batch wrong where a sequence has no token at all.
        lengths = [ends[number] if number < len(ends) else 1 for ends in ENDS]
        trial.prefill(pool, lengths, None)
        for (seq, end), slot in zip(rows, slots, strict=True):
            if end == lengths[seq]:
                errors.append(_distance(saved[slot], pool[seq]))
    return Held(
        *(float(torch.tensor(found).max()) for found in (errors, changes))
    )  # not a number, where one isn't


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative L2; 0 only if both are the same to the bit."""
    return (
        0.0
        if torch.equal(found, exact)
        else float((found.double() - exact.double()).norm() / exact.double().norm())
    )
