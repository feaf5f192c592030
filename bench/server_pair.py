"""A server with the extension and one with its prefix cache off, asked the same questions: every answer is compared.

Greedy tokens must be equal and logprobs within 1e-4. `settle` looks at the first server once nothing runs: no slot is
missing, the policy's table says what the tree holds, and the sums of every request hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from checked_server import START_S, launched

from marconi_ext.errors import CheckFailedError
from marconi_ext.servers.server import Server

LOGPROB_TOLERANCE = 1e-4
OFF_OPTIONS = {"disable_radix_cache": True, "max_total_tokens": 60_000, "max_mamba_cache_size": 200}
COMMON = {
    "grammar_backend": "xgrammar",
    "skip_server_warmup": True,
    "sleep_on_idle": True,
    "log_level": "warning",
}
KEYS = ("rid", "extra_key", "cache_salt", "priority")  # of a request, which change no answer
SETTLE_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One choice of a reply. logprobs, input_logprobs: of the chosen tokens; ended: finish_reason's type; lost_place:
    how often it was retracted or preempted"""

    output_ids: list[int]
    text: str
    logprobs: list[float]
    input_logprobs: list[float]
    cached_tokens: int
    ended: str
    lost_place: int = 0

    @classmethod
    def of(cls, reply: dict[str, Any]) -> Answer:
        meta = reply["meta_info"]
        return cls(
            reply["output_ids"],
            reply.get("text", ""),  # none without a tokenizer
            [entry[0] for entry in meta.get("output_token_logprobs") or []],
            [entry[0] for entry in meta.get("input_token_logprobs") or [] if entry[0] is not None],
            meta.get("cached_tokens", 0),  # an aborted request may not have got as far
            meta["finish_reason"]["type"],
            meta.get("num_retractions", 0),
        )


def request(
    prompt: Sequence[int], answer_tokens: int, sampling: dict[str, Any], **body: Any
) -> dict[str, Any]:
    """A body for /generate: greedy, to its length unless `sampling` says otherwise, with logprobs."""
    return {
        "input_ids": [int(token) for token in prompt],
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": answer_tokens,
            "ignore_eos": True,
            **sampling,
        },
        "return_logprob": True,
        "logprob_start_len": -1,
        **body,
    }


class Asked:
    """One server, asked over HTTP."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=300, trust_env=False)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The reply's JSON. Raises CheckFailedError on any status but 200."""
        reply = self.http.post(path, json=body)
        if reply.status_code != httpx.codes.OK:
            raise CheckFailedError(f"{path}: HTTP {reply.status_code}: {reply.text[:300]}")
        return reply.json() if "json" in reply.headers.get("content-type", "") else reply.text

    def generate(self, body: dict[str, Any]) -> list[Answer]:
        """All choices."""
        reply = self.post("/generate", body)
        return [Answer.of(choice) for choice in (reply if isinstance(reply, list) else [reply])]

    def section(self) -> dict[str, Any]:
        return self.server.info()["internal_states"][0]["marconi"]


class CacheOff:
    """A server without a prefix cache, and what it has answered so far: several servers may be held against it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._answers: dict[str, list[Answer]] = {}

    def answers(self, body: dict[str, Any]) -> list[Answer]:
        """What it says to a request; names and keys of the request play no part."""
        plain = {key: value for key, value in body.items() if key not in KEYS}
        key = json.dumps(plain, sort_keys=True)
        if key not in self._answers:
            self._answers[key] = self.asked.generate(plain)
        return self._answers[key]

    def forget(self) -> None:
        """The model's weights have changed."""
        self._answers.clear()


class Pair:
    """`ask` compares; `settle` takes the census. page_size: of the server with the extension"""

    def __init__(self, live: Asked, off: CacheOff, page_size: int = 1) -> None:
        self.live, self.off, self.page_size = live, off, page_size
        self.compared = 0

    def ask(self, prompt: Sequence[int], answer_tokens: int = 4, **body: Any) -> Answer:
        """The answer with the extension, which is that with the cache off."""
        return self.ask_for_all(prompt, answer_tokens, **body)[0]

    def ask_for_all(
        self, prompt: Sequence[int], answer_tokens: int, sampling: dict[str, Any] | None = None, **body: Any
    ) -> list[Answer]:
        """As `ask`, all choices (`n`)."""
        asked = request(prompt, answer_tokens, sampling or {}, **body)
        found = self.live.generate(asked)
        self.compare(asked, found)
        return found

    def ask_together(
        self, prompts: Iterable[Sequence[int]], answer_tokens: int = 4, at_once: int = 8
    ) -> list[Answer]:
        """`ask` each, some at the same time; the answers in the order of the prompts."""
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda prompt: self.ask(prompt, answer_tokens), prompts))

    def compare(self, asked: dict[str, Any], found: list[Answer]) -> None:
        """Raises CheckFailedError where they differ; of an aborted answer, what there is of it is compared."""
        wanted = self.off.answers(asked)
        if len(found) != len(wanted):
            raise CheckFailedError(f"{len(found)} choices, not {len(wanted)}")
        for one, other in zip(found, wanted, strict=True):
            self.compared += 1
            length = (
                len(one.output_ids)
                if one.ended == "abort"
                else max(len(one.output_ids), len(other.output_ids))
            )
            if one.output_ids != other.output_ids[:length]:
                raise CheckFailedError(
                    f"a prompt of {len(asked['input_ids'])} tokens, {one.cached_tokens} reused: "
                    f"{one.output_ids}, with the cache off {other.output_ids}"
                )
            for name in ("logprobs", "input_logprobs"):
                mine, theirs = getattr(one, name), getattr(other, name)[: len(getattr(one, name))]
                if not np.allclose(mine, theirs, atol=LOGPROB_TOLERANCE, rtol=0):
                    worst = float(np.abs(np.subtract(mine, theirs)).max())
                    raise CheckFailedError(
                        f"{name} of {len(asked['input_ids'])} tokens differ by {worst:.2g}"
                    )

    def floor(self, tokens: int) -> int:
        """Whole pages of so many tokens."""
        return tokens // self.page_size * self.page_size

    def settle(self) -> dict[str, Any]:
        """The extension's section, once nothing runs and a whole walk of the tree has been made since.

        Raises CheckFailedError: a slot is missing, table and tree differ, or sums are wrong."""
        deadline, walks = time.monotonic() + SETTLE_S, None
        while True:
            self.live.server.require_alive()
            section = self.live.section()
            slots, table = section["slots"], section["table"]
            at_rest = slots["unaccounted"] == slots["held"] == table["pending"] == 0
            walks = table["walks"] if walks is None and at_rest else walks
            if at_rest and table["walks"] >= walks + 2:  # the first of them may have begun earlier
                break
            if time.monotonic() > deadline:
                raise CheckFailedError(f"slots are held while nothing runs: {slots}, {table}")
            time.sleep(0.3)
        stats = section["stats"]
        parts = stats["hit_tokens"] + sum(stats["lost_tokens"].values()) + stats["new_tokens"]
        if table["differences"] or stats["wrong_sums"] or parts != stats["prompt_tokens"]:
            raise CheckFailedError(f"table {table}, stats {stats}")
        return section

    def flush(self) -> None:
        self.live.server.flush_cache()


@contextmanager
def cache_off(model: Path, **options: Any) -> Iterator[CacheOff]:
    """The server to compare with, which may still be starting. options: beside `OFF_OPTIONS`"""
    with launched(model, {**COMMON, **OFF_OPTIONS, **options}) as server:
        yield CacheOff(Asked(server))


@contextmanager
def pair(model: Path, off: CacheOff, **options: Any) -> Iterator[Pair]:
    """A server with the extension beside `off`, once both answer. options: of the server with the extension"""
    with launched(model, {**COMMON, "enable_marconi": True, **options}) as server:
        for one in (server, off.asked.server):
            one.wait_until_healthy(START_S)
        yield Pair(Asked(server), off, int(options.get("page_size", 1)))


Report = Callable[[Pair, np.random.Generator], str]
"""Sends one report's traffic; returns what is worth saying of it; raises CheckFailedError."""


def twice(pair: Pair, report: Report, seed: int) -> str:
    """The same requests two times, the second time on what the first left, with the census after each."""
    said = []
    for _ in range(2):
        said.append(report(pair, np.random.default_rng(seed)))
        pair.settle()
    return " · ".join(filter(None, dict.fromkeys(said)))
