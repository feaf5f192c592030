"""Chats of thinking models, and prompts that come again, by the live engine's rules: nothing shared is lost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from marconi_ext.policies.currency import Currency
from marconi_ext.policies.messages import Ending, MessageHeaders
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.live_rules import LiveRules
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import Request

START, END, LINE, THINK, USER, ASSISTANT, SYSTEM = 7, 8, 9, 10, 11, 12, 13
OPENED = (END, LINE, START, ASSISTANT, LINE, THINK, LINE)
HEADERS = tuple((START, role, LINE) for role in (SYSTEM, USER, ASSISTANT))
KNOWN = {
    "template": MessageHeaders(HEADERS, (Ending(OPENED, 2),)),
    "headers": MessageHeaders(HEADERS),
    "none": MessageHeaders(),
}
OURS = ("gittins", "gittins-basic", "lru", "seglen", "flop-aware:1", "exact+lru", "foresight+gittins")


def chats(sessions: int, turns: int, seed: int = 3) -> Iterator[tuple[np.ndarray, int | None]]:
    """Prompts, each with the tokens that it shares with the turn before: up to that one's answer's header."""
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> list[int]:
        return rng.integers(100, 5_000, rng.integers(low, high)).tolist()

    system = [START, SYSTEM, LINE, *draw(200, 201), END, LINE]
    for _ in range(sessions):
        history, shared = list(system), None
        for _ in range(turns):
            asked = [*history, START, USER, LINE, *draw(100, 400), END, LINE, START, ASSISTANT, LINE]
            yield np.array([*asked, THINK, LINE], np.int32), shared
            shared, history = len(asked), [*asked, *draw(20, 80), END, LINE]


def rules(policy: str, headers: MessageHeaders, slots: int = 1_000) -> LiveRules:
    built = parse_policy(policy).build(Currency())
    return LiveRules(slots, 10**7, *built, Currency(), headers=headers)


def thought(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(5_000, 9_000, 12).astype(np.int32)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("policy", OURS)
@pytest.mark.parametrize("shape", [(30, 2), (10, 6), (1, 30)])
def test_the_next_turn_starts_from_the_input_s_end(policy: str, known: str, shape: tuple[int, int]) -> None:
    live, rng, lost = rules(policy, KNOWN[known]), np.random.default_rng(5), []
    for prompt, shared in chats(*shape):
        hit = live.serve(prompt, thought(rng)).hit_tokens
        if shared:
            lost.append(shared - hit)
    assert not any(lost[2:]) and (known == "none" or not any(lost))


@pytest.mark.parametrize("policy", ["marconi", "judicious+lru"])
def test_the_paper_s_rule_loses_it(policy: str) -> None:
    """The control: the branch point alone is saved, one turn too late."""
    live, rng, lost = rules(policy, KNOWN["template"]), np.random.default_rng(5), []
    for prompt, shared in chats(1, 10):
        hit = live.serve(prompt, thought(rng)).hit_tokens
        lost += [shared - hit] if shared else []
    assert min(lost) > 100


@pytest.mark.parametrize("policy", OURS)
@pytest.mark.parametrize("length", [2, 63, 64, 65, 600])
def test_the_same_prompt_again_is_served_to_its_last_token(policy: str, length: int) -> None:
    live, rng = rules(policy, KNOWN["none"]), np.random.default_rng(5)
    prompt = rng.integers(100, 5_000, length).astype(np.int32)
    found = [live.serve(prompt, thought(rng)).hit_tokens for _ in range(6)]
    assert found == [0] + [length - 1] * 5
    built = parse_policy(policy).build(Currency())
    simulator = Simulator(Capacity(slots=100), *built, Currency())
    found = [simulator.serve(Request("s", i, float(i), prompt, thought(rng))).hit_tokens for i in range(6)]
    assert found == [0] + [length - 1] * 5


@pytest.mark.parametrize("known", KNOWN)
def test_a_template_that_keeps_everything_costs_no_state_more(known: str) -> None:
    """Turns that repeat all: two states a request, the prompt's end and the last token's, and what is tried."""
    headers = KNOWN[known]
    if known == "template":
        headers = MessageHeaders(HEADERS, (Ending(OPENED, 0),))
    live, rng, history, lost = rules("gittins", headers), np.random.default_rng(4), np.empty(0, np.int32), 0
    for _ in range(40):
        asked = np.array([*history, START, USER, LINE, *rng.integers(100, 5_000, 100), *OPENED], np.int32)
        answer = np.array([*thought(rng), END], np.int32)
        lost += max(len(history) - 1, 0) - live.serve(asked, answer).hit_tokens
        history = np.array([*asked, *answer], np.int32)
    kinds = live.runtime.table.kind[live.runtime.table.live_rows()].tolist()
    assert lost == 0
    assert kinds.count(Kind.INPUT_END) == (1 if known == "headers" else 0)
    assert live.runtime.counts["offers"] <= 2 * 40 + 2


def loops(sessions: int, at_once: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sessions of four tasks of 5 to 20 calls, so many at once; between tasks each lies idle for a while."""
    rng = np.random.default_rng(8)

    def session() -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
        history = [START, SYSTEM, LINE, *range(100, 400)]
        for _ in range(4):
            history += [END, LINE, START, USER, LINE, *rng.integers(100, 5_000, 100).tolist()]
            running = list(history)
            for _ in range(rng.integers(5, 20)):
                prompt = np.array([*running, *OPENED], np.int32)
                said, result = rng.integers(100, 5_000, (2, 30)).tolist()
                answer = np.array([*thought(rng), *said, END], np.int32)
                yield prompt, answer
                running = [*prompt.tolist(), *answer.tolist(), LINE, *result]
                history += [END, LINE, START, ASSISTANT, LINE, *said, END, LINE, *result]
            for _ in range(rng.integers(5, 40)):
                yield None

    waiting = [session() for _ in range(sessions)]
    running, waiting = waiting[:at_once], waiting[at_once:]
    while running:
        one = running[rng.integers(len(running))]
        try:
            request = next(one)
        except StopIteration:
            running.remove(one)
            running += [waiting.pop(0)] if waiting else []
            continue
        if request is not None:
            yield request


def test_half_as_many_slots_as_sessions_are_enough() -> None:
    requests = list(loops(24, at_once=6))
    total = sum(len(prompt) for prompt, _ in requests)

    def rate(policy: str, slots: int) -> float:
        live = rules(policy, KNOWN["template"], slots)
        return 100 * sum(live.serve(*request).hit_tokens for request in requests) / total

    unlimited = rate("gittins", 10_000)
    found = unlimited, rate("gittins", 12), rate("fork-predictor+lru", 12)
    assert found[1] > unlimited - 2, found
    assert found[2] < unlimited - 5, found


def test_a_tool_loop_keeps_what_the_next_task_starts_from() -> None:
    """Ten tasks of eight calls. Within a task everything is repeated; a new task drops what was thought since the
    user's last message, and starts from there."""
    rng = np.random.default_rng(6)
    live = rules("gittins", KNOWN["template"], slots=1_000)
    repeated = 0
    history, before, lost_calls, lost_tasks = [], 0, [], []
    for task in range(10):
        history += [START, USER, LINE, *rng.integers(100, 5_000, 200).tolist()]
        running, bare = list(history), list(history)
        for call in range(8):
            prompt = np.array([*running, *OPENED], np.int32)
            answer = np.array([*thought(rng), *rng.integers(100, 5_000, 30), END], np.int32)
            hit = live.serve(prompt, answer).hit_tokens
            if call:
                lost_calls.append(repeated - hit)
            elif task:
                lost_tasks.append(before - hit)
            if not call:
                before = len(prompt) - 2
            repeated = len(prompt) + len(answer) - 1
            result = [LINE, *rng.integers(100, 5_000, 50).tolist()]
            running = [*prompt.tolist(), *answer.tolist(), *result]
            bare += [END, LINE, START, ASSISTANT, LINE, *answer[12:].tolist(), *result]
        history = bare
    assert not any(lost_calls) and not any(lost_tasks)
    kinds = live.runtime.table.kind[live.runtime.table.live_rows()].tolist()
    assert kinds.count(Kind.INPUT_END) == 10  # one a task, none for its calls
