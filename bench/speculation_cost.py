"""What exact states cost beside speculative decoding: counted on the real engine, stock beside the extension.

    python bench/speculation_cost.py [--only ngram-mamba2,mtp-gdn] [--rounds N] [--json FILE]

The CPU platform runs n-gram drafts, or the small models' layers for multi-token prediction. Counted are the states
that commits copy and the slots that requests hold while they run; both are the scheduler's doing and don't depend on
the device.

- copied: bytes of states (convolution windows included) that a request's verify copies to a slot, on average
- slots: state slots of a running request, beside what the prefix cache holds
- kept: finished requests whose last token's state is in the cache, in %
- acceptance: tokens that a verify gives
- time: processor time of prompts that share nothing, marconi by stock; the arms take turns
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from engine_in_process import Ask, Engine, Engines, Job
from records import records_of, write
from speculative_traffic import CONCURRENCY, MULTI_TOKEN_PREDICTION, NGRAM, VOCABULARY, Case, record

from marconi_ext.models.families import FAMILIES, write_small_model

EMBEDDING_SCALE = 8  # a layer for multi-token prediction guesses about every second token
SETTINGS = ("ngram-mamba2", "ngram-gdn", "mtp-mamba2", "mtp-gdn")
ARMS = (("stock", False), ("marconi", True))


@dataclass
class Cost:
    """verifies: of one request each; copied_bytes, slots, requests: sums over them; loss: % of prompt tokens"""

    verifies: int = 0
    copied_bytes: int = 0
    slots: int = 0
    requests: int = 0
    finished: int = 0
    kept: int | None = None
    acceptance: float = 0.0
    cached_tokens: list[int] = field(default_factory=list)
    lost_tokens: dict[str, int] | None = None
    prompt_tokens: int = 0

    @property
    def copied_per_verify(self) -> float:
        return self.copied_bytes / self.verifies

    @property
    def slots_per_request(self) -> float:
        return self.slots / self.requests


@dataclass(frozen=True)
class Count:
    """A task: ask for all cases twice and count on the way."""

    cases: Sequence[Case]

    def __call__(self, engine: Engine) -> Cost:
        from sglang.kernels.ops.mamba import mamba_state_scatter_triton as scatter

        from sglang_hooks.cpu_platform.rebind import rebind

        cost, scheduler = Cost(), engine.scheduler
        original, run_batch = scatter.fused_mamba_state_scatter_with_mask, scheduler.run_batch

        def put_back(dst: Any, src: Any, slots: Any, steps: Any, rows: Any = None) -> None:
            copied = int((steps >= 0).sum())
            if steps.numel():
                cost.copied_bytes += copied * dst[:, 0].numel() * dst.element_size()
            original(dst, src, slots, steps, rows)

        def counting(batch: Any, *args: Any, **kwargs: Any) -> Any:
            if batch.forward_mode.is_decode():
                cost.verifies += len(batch.reqs)
                pool, tree = scheduler.req_to_token_pool, scheduler.tree_cache
                in_tree = tree.mamba_evictable_size() + tree.mamba_protected_size()
                cost.slots += pool.mamba_allocator.size - pool.mamba_allocator.available_size() - in_tree
                cost.requests += len(scheduler.running_batch.reqs)
            return run_batch(batch, *args, **kwargs)

        for name in ("fused_mamba_state_scatter_with_mask", "fused_conv_window_scatter_with_mask"):
            rebind(scatter.__name__, name, put_back)
        scheduler.run_batch = counting
        asks = [case.ask for case in self.cases]
        for _ in range(2):
            answers = engine.ask(asks, CONCURRENCY)
            cost.cached_tokens.append(sum(answer.cached_tokens for answer in answers))
            cost.finished += len(answers)
        cost.acceptance = engine.acceptance()
        facts = engine.marconi()
        if facts is not None:
            counters = facts["counters"]
            cost.kept = cost.finished - counters.get("last_token_misaligned", 0)
            cost.lost_tokens, cost.prompt_tokens = (
                facts["stats"]["lost_tokens"],
                facts["stats"]["prompt_tokens"],
            )
        return cost


@dataclass(frozen=True)
class Alone:
    """A task: prompts that share nothing. Returns processor seconds of all of them."""

    seed: int

    def __call__(self, engine: Engine) -> float:
        rng = np.random.RandomState(self.seed)
        prompts = [rng.randint(1_000, VOCABULARY, 200) for _ in range(4 * CONCURRENCY)]
        asks = [Ask([int(token) for token in prompt], 64) for prompt in prompts]
        engine.ask(asks[:CONCURRENCY], CONCURRENCY)  # what happens once isn't counted
        started = time.process_time()
        engine.ask(asks[CONCURRENCY:], CONCURRENCY)
        return time.process_time() - started


def measured(engines: Engines, setting: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Both arms' costs, and the ratios of their times."""
    kind, family = setting.split("-")
    scale = 1 if kind == "ngram" else EMBEDDING_SCALE
    model = write_small_model(folder / setting, FAMILIES[family](embedding_scale=scale))
    drafts = NGRAM if kind == "ngram" else MULTI_TOKEN_PREDICTION
    options = {"model_path": model, **drafts}
    cases = engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))
    found: dict[str, Any] = {
        arm: engines.run(Job({**options, "enable_marconi": marconi}, Count(cases))) for arm, marconi in ARMS
    }
    seconds: dict[str, list[float]] = {"stock": [], "marconi": []}
    for number in range(rounds):
        for arm, marconi in ARMS if number % 2 else ARMS[::-1]:
            seconds[arm].append(engines.run(Job({**options, "enable_marconi": marconi}, Alone(number))))
    pairs = zip(seconds["marconi"], seconds["stock"], strict=True)
    return found | {"time_ratios": [ours / theirs for ours, theirs in pairs]}


def show(setting: str, found: dict[str, Any]) -> None:
    print(
        f"\n{setting:14}{'copied, B a verify':>20}{'slots a request':>18}{'acceptance':>12}{'cached tokens':>16}"
    )
    for arm, _ in ARMS:
        cost = found[arm]
        print(
            f"{arm:14}{cost.copied_per_verify:20,.0f}{cost.slots_per_request:18.2f}{cost.acceptance:12.3f}"
            f"{sum(cost.cached_tokens):16,}"
        )
    ours, ratios = found["marconi"], found["time_ratios"]
    print(
        f"kept: {ours.kept} of {ours.finished} last states; lost {ours.lost_tokens} of {ours.prompt_tokens:,}"
    )
    if ratios:
        print(
            f"time: {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="ngram-mamba2,mtp-gdn", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs that are timed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder, Engines() as engines:
        for setting in options.only.split(","):
            results[setting] = measured(engines, setting, Path(folder), options.rounds)
            show(setting, results[setting])
    if options.json:
        rows: list[dict[str, Any]] = []
        for setting, found in results.items():
            for arm, _ in ARMS:
                rows.append({"case": setting, "server": arm, **asdict(found[arm])})
            rows[-1]["time_ratio"] = found["time_ratios"]
        write(records_of(rows, bench="speculation_cost", case=("case",), provider="server"), options.json)


if __name__ == "__main__":
    from speculation_cost import main as main_under_its_name  # so that pickles name the module

    main_under_its_name()
