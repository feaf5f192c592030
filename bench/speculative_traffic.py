"""Requests for engines that decode speculatively, and the answers of the same model with its prefix cache off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from engine_in_process import Ask, Engine, Said
from unequal_answers import unequal

from marconi_ext.traces.script import Histories, Script
from marconi_ext.traces.workloads import AgentSizes, FewShotSizes, ForkSizes, agent, few_shot, fork

VOCABULARY = 4_096
CONCURRENCY = 8
BEYOND_TOKENS = 6  # recorded after the end of an answer, as long as a run of accepted drafts


@dataclass(frozen=True)
class Case:
    """A request, and its answer with the cache off. beyond: tokens that the model would say after it"""

    ask: Ask
    alone: Said
    beyond: tuple[int, ...] = ()


NGRAM: dict[str, object] = {
    "speculative_algorithm": "NGRAM",
    "speculative_num_draft_tokens": 6,
    "speculative_ngram_max_bfs_breadth": 2,  # trees that branch
    "mamba_radix_cache_strategy": "extra_buffer",
}
MULTI_TOKEN_PREDICTION: dict[
    str, object
] = {  # chains of three drafts by the model's own layer, as the recipes have it
    "speculative_algorithm": "NEXTN",
    "speculative_num_steps": 3,
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
    "mamba_radix_cache_strategy": "extra_buffer",
}


@dataclass(frozen=True)
class Pass:
    """The answers to all requests, and what the engine knew after them. acceptance: tokens a verify, since its start"""

    answers: list[Said]
    marconi: dict[str, Any] | None
    acceptance: float


def mixed_scripts() -> list[Script]:
    """148 requests: agent sessions, few-shot questions and forks one token apart."""
    answers = (4, 24)
    return [
        *agent(AgentSizes(9, 8, 200, (1, 60), answers), 1, VOCABULARY),
        *few_shot(FewShotSizes(40, 4, (60, 200), (1, 40), answers), 2, VOCABULARY),
        *fork(ForkSizes(4, 3, 6, 1, 100, (1, 60), answers), 3, VOCABULARY),
    ]


def record(engine: Engine) -> list[Case]:
    """Ask an engine whose cache is off for everybody's next turn, round by round. Every third request is then given a
    token of its own answer to stop at, some of them the first."""
    scripts = mixed_scripts()
    histories, done = Histories(scripts), {script.session_id: 0 for script in scripts}
    cases: list[Case] = []
    while speakers := [
        script
        for script in scripts
        if done[script.session_id] < len(script.turns) and histories.ready(script, done[script.session_id])
    ]:
        prompts = [histories.prompt(script, done[script.session_id]) for script in speakers]
        asks = [
            Ask([int(token) for token in prompt], script.turns[done[script.session_id]].answer_tokens)
            for script, prompt in zip(speakers, prompts, strict=True)
        ]
        longer = [Ask(ask.prompt, ask.answer_tokens + BEYOND_TOKENS) for ask in asks]
        answers = engine.ask(longer, CONCURRENCY)
        for script, prompt, ask, answer in zip(speakers, prompts, asks, answers, strict=True):
            case = _case(ask, answer, len(cases))
            histories.answered(script, prompt, np.asarray(case.alone.output_ids, dtype=np.int32))
            done[script.session_id] += 1
            cases.append(case)
    assert len(cases) == 148
    return cases


def _case(ask: Ask, longer: Said, number: int) -> Case:
    """Cut where the answer ends: by its length, or at a stop token of its own."""
    end, stops = ask.answer_tokens, ask.stops
    if number % 3 == 0:
        stops = (longer.output_ids[0 if number % 15 == 0 else end // 2],)
        end = longer.output_ids.index(stops[0]) + 1
    alone = Said(longer.output_ids[:end], longer.logprobs[:end], 0)
    return Case(Ask(ask.prompt, ask.answer_tokens, stops), alone, tuple(longer.output_ids[end:]))


@dataclass(frozen=True)
class Twice:
    """A task: ask for all cases twice; the second time drafts made of answers fit. open: requests at a time, a pass"""

    cases: Sequence[Case]
    open: tuple[int, ...] = (CONCURRENCY, CONCURRENCY)

    def __call__(self, engine: Engine) -> list[Pass]:
        asks = [case.ask for case in self.cases]
        return [Pass(engine.ask(asks, number), engine.marconi(), engine.acceptance()) for number in self.open]


def wrong(cases: Sequence[Case], answers: Sequence[Said]) -> list[int]:
    """Numbers of the requests whose answer isn't that of an empty cache."""
    return unequal(answers, [case.alone for case in cases])
