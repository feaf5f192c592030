"""Every size of a prefill's chunks on one engine: short extends past a state, forks, requests aborted between chunks.

A process that has its cache off says what the answers are (`record`); `Sizes` asks for them on an engine with the
extension, twice a size, from an empty cache, beside requests of the same beginnings that are aborted on their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from engine_in_process import Ask, Engine, Said
from speculative_traffic import Case

ANSWER_TOKENS = 3


@dataclass(frozen=True)
class SizePass:
    """One pass with chunks of `chunk_tokens`. answers: of what wasn't aborted; aborted: how many were cut off"""

    chunk_tokens: int
    answers: list[Said]
    aborted: int
    marconi: dict[str, Any]


def record(engine: Engine) -> list[Case]:
    """Conversations that go on by 1, 2, 3 and many tokens past their last answer, each turn with a fork beside it."""
    rng = np.random.default_rng(0)

    def draw(tokens: int) -> list[int]:
        return rng.integers(1_000, 4_096, tokens).tolist()

    cases: list[Case] = []
    histories = [draw(tokens) for tokens in (1, 5, 63, 64, 65, 130)]
    for new in (0, 1, 2, 3, 90, 1):
        prompts = [history + draw(new) for history in histories]
        forks = [prompt[: 1 + 2 * len(prompt) // 3] + draw(9) for prompt in prompts]
        asks = [Ask(prompt, ANSWER_TOKENS) for prompt in prompts + forks]
        answers = engine.ask(asks, concurrency=4)
        cases += [Case(ask, answer) for ask, answer in zip(asks, answers, strict=True)]
        histories = [p + a.output_ids for p, a in zip(prompts, answers[: len(prompts)], strict=True)]
    return cases


@dataclass(frozen=True)
class Sizes:
    """A task: all cases with chunks of each size. at_once: requests open at a time"""

    cases: Sequence[Case]
    chunk_tokens: Sequence[int]
    at_once: int = 3

    def __call__(self, engine: Engine) -> list[SizePass]:
        passes = []
        for number, size in enumerate(self.chunk_tokens):
            engine.scheduler.chunked_prefill_size = size
            assert engine.scheduler.flush_cache()
            asks = self._with_some_aborted(number)
            for _ in range(2):
                said = engine.ask(asks, self.at_once)
                kept = [one for ask, one in zip(asks, said, strict=True) if ask.abort_after is None]
                passes.append(SizePass(size, kept, engine.aborted, engine.marconi()))
        return passes

    def _with_some_aborted(self, seed: int) -> list[Ask]:
        """Before every third request the same one, to be aborted after so many of the scheduler's steps."""
        rng = np.random.default_rng(seed)
        asks: list[Ask] = []
        for number, case in enumerate(self.cases):
            if number % 3 == 0:
                asks.append(replace(case.ask, answer_tokens=40, abort_after=int(rng.integers(1, 12))))
            asks.append(case.ask)
        return asks
