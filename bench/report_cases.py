"""What users of hybrid models' caches have reported elsewhere, as traffic: each case names what must come out.

A case takes a `Pair` and a random generator, sends its requests, and raises CheckFailedError where reuse falls short
of what the case promises; the pair compares every answer with the cache off.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from server_pair import Answer, Pair, request

from marconi_ext.errors import CheckFailedError

BEGIN, USER, ASSISTANT, THINK = (
    1,
    3,
    4,
    100,
)  # <s>, [INST] and [/INST] of the small model's tokenizer; one of its words
WORDS = (1_000, 4_096)


def draw(rng: np.random.Generator, tokens: int) -> list[int]:
    return rng.integers(*WORDS, tokens).tolist()


def at_least(answer: Answer, tokens: int, what: str) -> None:
    if answer.cached_tokens < tokens:
        raise CheckFailedError(f"{what}: {answer.cached_tokens} tokens reused, not {tokens}")


# ---- prefills that end early, and short ones --------------------------------------------------------


def aborted_prefills(pair: Pair, rng: np.random.Generator, rounds: int) -> str:
    """A long chunked prefill is aborted at a random chunk and sent again at once, while a third request sends its
    beginning with another tail."""
    cut_off = 0
    live = pair.live
    for number in range(rounds):
        prompt = draw(rng, int(rng.integers(500, 1_400)))
        fork = prompt[: int(rng.integers(50, len(prompt)))] + draw(rng, int(rng.integers(1, 60)))
        rid, wait_s = f"aborted-{number}-{time.monotonic_ns()}", float(rng.uniform(0, 0.25))
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(live.generate, request(prompt, 4, {}, rid=rid))
            time.sleep(wait_s)
            live.post("/abort_request", {"rid": rid})
            again, other = pool.submit(pair.ask, prompt), pool.submit(pair.ask, fork)
            again.result(), other.result()
            cut_off += first.result()[0].ended == "abort"
    return f"{cut_off} of {rounds} aborted while they ran"


def short_extends(pair: Pair, rng: np.random.Generator) -> str:
    """A prompt goes on by 1, 2 and 3 tokens past its last state, then by many."""
    for length in (1, 5, 63, 64, 65, 130, 400):
        history = draw(rng, length)
        answer = pair.ask(history)
        for new in (1, 2, 3, 200, 1):
            held = len(history) + len(answer.output_ids) - 1
            history = history + answer.output_ids + draw(rng, new - 1)
            answer = pair.ask(history)
            at_least(answer, pair.floor(min(held, len(history) - 1)), f"{new} tokens past a state at {held}")
    return ""


def boundary_lengths(pair: Pair, rng: np.random.Generator) -> str:
    """Prompts around multiples of the chunk and of the page, three times each: all but the last token is reused."""
    around = [64 * k + off for k in (1, 2, 3, 8) for off in (-1, 0, 1)]
    pages = [16 * k + off for k in (1, 2, 5) for off in (-1, 0, 1)]
    for length in sorted({*around, *pages}):
        prompt = [BEGIN, *draw(rng, length - 1)]
        pair.ask(prompt)
        for _ in range(2):
            at_least(pair.ask(prompt), pair.floor(length - 1), f"a prompt of {length} again")
    return ""


# ---- chats --------------------------------------------------------------------------------------------


def dropped_generation_prompts(pair: Pair, rng: np.random.Generator) -> str:
    """Generation prompts whose last 1 to 6 tokens the next turn drops: its reuse reaches the user's last token.

    The assistant's header stays, as in every chat template; where there is none, the place has to be learned.
    """
    for kept in (1, 0):
        for dropped in range(1, 7):
            generation = [ASSISTANT, *range(THINK, THINK + dropped)][1 - kept :]
            for session in range(4):
                history, said = [BEGIN, USER, *draw(rng, 100)], None
                for turn in range(3):
                    history = [*history, USER, *draw(rng, int(rng.integers(30, 90)))]
                    answer = pair.ask([*history, *generation])
                    if said is not None and (kept or session > 1):
                        what = (
                            f"session {session + 1}, turn {turn + 1}, {dropped} tokens dropped, {kept} kept"
                        )
                        at_least(answer, pair.floor(said), what)
                    said = len(history)
                    history = [
                        *history,
                        *generation[:kept],
                        *draw(rng, 20),
                    ]  # what the template makes of the answer
    return ""


def one_slot_more_than_sessions(
    pair: Pair, rng: np.random.Generator, turns: int, sessions: int, most_below: int | None = None
) -> str:
    """Sessions that take turns, in a pool of one state more than sessions: how often a turn falls below the state that
    the last one left. A policy that has learned from other traffic has to learn anew first.

    most_below: more is a failure; None: it is only told
    """
    pair.flush()
    histories = [draw(rng, 40) for _ in range(sessions)]
    held = [0] * sessions
    below: list[int] = []
    for turn in range(turns):
        for number in range(sessions):
            prompt = histories[number] + draw(rng, int(rng.integers(1, 12)))
            answer = pair.ask(prompt, 3)
            if answer.cached_tokens < held[number]:
                below.append(turn + 1)
            histories[number] = prompt + answer.output_ids
            held[number] = len(prompt) + len(answer.output_ids) - 1
    told = f"{len(below)} of {turns * sessions} turns below, the last in turn {max(below, default=0)}"
    if most_below is not None and len(below) > most_below:
        raise CheckFailedError(told)
    return told


def three_slots_and_a_branch(pair: Pair, rng: np.random.Generator) -> str:
    """A shared prefix was asked, then three ways on from it, with room for three states: the prefix' state stays, at
    the branch or at the prefix' last token but one."""
    pair.flush()
    shared = draw(rng, 150)
    pair.ask(shared)
    tails = [draw(rng, 40) for _ in range(4)]
    pair.ask(shared + tails[0])  # finds the branch
    for tail in tails[1:]:
        at_least(pair.ask(shared + tail), len(shared) - 1, "another way on from the prefix")
    at_least(pair.ask(shared), len(shared) - 1, "the prefix again")
    return ""


def documents_between_turns(pair: Pair, rng: np.random.Generator, documents: int) -> str:
    """A batch job of documents that nobody asks for again, between two turns of a chat: what the chat loses by it."""
    pair.flush()
    history, held, lost = [BEGIN, USER, *draw(rng, 200)], 0, []
    for turn in range(5):
        prompt = history + draw(rng, 40)
        answer = pair.ask(prompt)
        lost.append(max(0, held - answer.cached_tokens))
        held = len(prompt) - 1
        history = prompt + answer.output_ids
        if turn:  # the chat has been seen to go on
            pair.ask_together([draw(rng, int(rng.integers(150, 350))) for _ in range(documents)])
    return f"tokens lost at the chat's turns: {lost}"


LONG_ANSWER = 150  # tokens: it still runs on a fast machine when others come


def preempted_by_priority(pair: Pair, rng: np.random.Generator, requests: int) -> str:
    """Requests of low priority that share beginnings run when others of high priority come, some in their middle, and
    take their places."""
    preempted = 0
    for _ in range(3):
        shared = draw(rng, 300)
        low, high = (
            [
                shared[: int(rng.integers(20, 300))] + draw(rng, int(rng.integers(5, 200)))
                for _ in range(requests)
            ]
            for _ in range(2)
        )
        with ThreadPoolExecutor(2 * requests) as pool:
            replies = [pool.submit(pair.ask, prompt, LONG_ANSWER, priority=0) for prompt in low]
            time.sleep(0.3)
            replies += [pool.submit(pair.ask, prompt, 5, priority=100) for prompt in high]
            preempted += sum(reply.result().lost_place > 0 for reply in replies)
    if not preempted:
        raise CheckFailedError("no request was preempted")
    return f"{preempted} of {6 * requests} requests were preempted"


# ---- isolation ------------------------------------------------------------------------------------------


def isolated_keys(pair: Pair, rng: np.random.Generator) -> str:
    """One prompt under every pair of salt and extra key: nothing is reused across, everything within. SGLang can't load
    LoRA adapters without CUDA: tests/hooks/radix/test_cache_isolated_keys.py has them."""
    pair.flush()
    prompt = draw(rng, 120)
    keys = [{"cache_salt": salt, "extra_key": key} for salt, key in product((None, "a", "b", "ab"), repeat=2)]
    for again in (False, True):
        for key in keys:
            named = {name: value for name, value in key.items() if value is not None}
            reused = pair.ask(prompt, 4, **named).cached_tokens
            if reused != (pair.floor(len(prompt) - 1) if again else 0):
                raise CheckFailedError(f"{reused} tokens reused under {named}, asked again: {again}")
    return ""


def salted_one_offs(pair: Pair, rng: np.random.Generator, requests: int) -> str:
    """Requests with a salt of their own each, between turns of a session: nothing is reused across salts, and what
    the session loses by them is told."""
    pair.flush()
    history, held, lost = [BEGIN, USER, *draw(rng, 150)], 0, []
    turns = 5
    for turn in range(turns + 1):
        prompt = history + draw(rng, 30)
        answer = pair.ask(prompt)
        lost.append(max(0, held - answer.cached_tokens))
        held = len(prompt) - 1
        history = prompt + answer.output_ids
        shared = draw(rng, 60)

        def one_off(number: int, shared: list[int] = shared) -> Answer:
            return pair.ask(shared, 2, cache_salt=f"{number}-{time.monotonic_ns()}")

        with ThreadPoolExecutor(8) as pool:
            for reused in pool.map(one_off, range(requests // turns if turn > 0 else 0)):
                if reused.cached_tokens:
                    raise CheckFailedError(f"{reused.cached_tokens} tokens reused across salts")
    return f"tokens lost at the session's turns: {lost}"


# ---- the server's own controls ----------------------------------------------------------------------------


def paused_with_waiting_requests(pair: Pair, rng: np.random.Generator) -> str:
    """Pauses in each mode and a flush while requests run and wait; then the memory is released, and taken again."""
    live = pair.live
    ended: list[str] = []
    for mode in ("retract", "in_place", "abort"):
        shared = draw(rng, 200)
        asked = [request(shared + draw(rng, int(rng.integers(5, 200))), 30, {}) for _ in range(20)]
        with ThreadPoolExecutor(len(asked)) as pool:
            running = [pool.submit(live.generate, body) for body in asked]
            time.sleep(0.3)
            live.post("/pause_generation", {"mode": mode})
            if mode == "retract":
                pair.flush()
            time.sleep(0.2)
            live.post("/continue_generation", {})
            for body, reply in zip(asked, running, strict=True):
                found = reply.result()
                ended += [one.ended for one in found]
                pair.compare(body, found)
    for path in ("/release_memory_occupation", "/resume_memory_occupation"):
        live.post(path, {})
    pair.ask(shared)
    return f"{ended.count('abort')} of {len(ended)} aborted by the pause that aborts"


def weights_replaced(pair: Pair, rng: np.random.Generator, here: str, other: str) -> str:
    """Other weights are loaded while requests wait, and the first ones again: no state of theirs is reused."""
    prompts = [draw(rng, 150) for _ in range(6)]
    for number, model in enumerate((here, other, here)):
        if number:
            with ThreadPoolExecutor(8) as pool:
                waiting = [pool.submit(pair.live.generate, request([*p, 7], 40, {})) for p in prompts]
                time.sleep(0.1)
                for server in (pair.live, pair.off.asked):
                    server.post("/update_weights_from_disk", {"model_path": model})
                for reply in waiting:
                    reply.result()
            pair.off.forget()
        for prompt in prompts + prompts:
            pair.ask(prompt)
    return ""


# ---- how answers are asked for, and how they end ------------------------------------------------------------


def several_samples(pair: Pair, rng: np.random.Generator) -> str:
    """n = 4 of one prompt, new and known; then one of its answers goes on."""
    for length in (10, 64, 300):
        prompt = draw(rng, length)
        for _ in range(2):
            found = pair.ask_for_all(prompt, 5, {"n": 4})
        at_least(found[-1], pair.floor(length - 1), "the prompt of four samples again")
        pair.ask(prompt + found[0].output_ids + draw(rng, 9))
    return ""


def logprobs_of_cached_tokens(pair: Pair, rng: np.random.Generator) -> str:
    """Logprobs of the prompt's own tokens, from places inside and beyond what is cached."""
    prompt = draw(rng, 200)
    pair.ask(prompt)
    for start in (0, 1, 63, 64, 100, 150, 198, 199):
        answer = pair.ask(prompt, 4, logprob_start_len=start)
        if not len(answer.input_logprobs) >= len(prompt) - start - 1:
            raise CheckFailedError(f"{len(answer.input_logprobs)} logprobs of the prompt, from {start} on")
        pair.ask(prompt + draw(rng, 20), 4, logprob_start_len=start)
    return ""


def ends_of_answers(pair: Pair, rng: np.random.Generator) -> str:
    """A grammar, stop strings, stop tokens that the scheduler sees a step late; then the next turn, with what ended
    the answer and without it."""
    for round_ in range(3):
        prompt = draw(rng, 90 + 7 * round_)
        plain = pair.ask(prompt, 12)
        ways: list[dict[str, Any]] = [
            {"regex": "[0-9]{6}"},
            {"stop_token_ids": [plain.output_ids[5]]},
            {"stop_token_ids": [plain.output_ids[0]]},
            {"stop": [plain.text[4:7]]} if plain.text[4:7].isprintable() and len(plain.text) > 7 else {},
            {"ignore_eos": False, "stop_token_ids": [plain.output_ids[3], plain.output_ids[7]]},
        ]
        for sampling in ways:
            answer = pair.ask_for_all(prompt, 12, sampling)[0]
            for kept in (answer.output_ids, answer.output_ids[:-1]):
                following = pair.ask(prompt + kept + draw(rng, 15))
                at_least(following, pair.floor(len(prompt) - 1), f"the turn after {sampling}")
    return ""


# ---- the host tier ----------------------------------------------------------------------------------------


def churned_host_tier(pair: Pair, rng: np.random.Generator, prompts: int) -> str:
    """1.35 times as many prompts as states fit on the device, then all of them again."""
    asked = [draw(rng, int(rng.integers(60, 200))) for _ in range(prompts)]
    pair.ask_together(asked, at_once=4)
    again = pair.ask_together(asked, at_once=4)
    reused = sum(answer.cached_tokens for answer in again) / sum(map(len, asked))
    if reused < 0.5:
        raise CheckFailedError(f"{reused:.0%} of the prompts was reused from device and host")
    stats = pair.live.section()["stats"]
    kept = sum(row["states"] for row in stats["evictions"] if row["reason"] == "host")
    if not sum(stats["returns"].values()) or not kept:
        raise CheckFailedError(f"no state has gone to the host and come back: {stats}")
    return f"{reused:.0%} reused of {prompts} prompts"


def with_(case: Any, **values: Any) -> Any:
    """A case with its numbers filled in, under its own name."""
    filled = partial(case, **values)
    filled.__name__ = case.__name__  # type: ignore[attr-defined]
    return filled
