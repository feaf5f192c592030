"""Asks a running server what the extension does there. Every failure is an error that says what to do."""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.servers.http_client import direct_client
from marconi_ext.watch.dumped_tree import DumpedTree
from marconi_ext.watch.sealed_tokens import KEY_ARGUMENTS, NEXT, OFF, SHAPE, TREE_ARGUMENT, WITH_TOKENS, Key

TIMEOUT_S = 10.0
DUMP_TIMEOUT_S = 120.0
PREFILL_TIMEOUT_S = 600.0
COMMAND_PREFIX = "marconi:"
GAUGES = {"sglang:num_running_reqs": "running", "sglang:num_queue_reqs": "queued"}
"""SGLang's own metrics that a view shows."""
SECTION = {"version", "config", "slots", "stats", "policy"}  # what every view reads of a rank
COUNTERS = {"requests", "prompt_tokens", "hit_tokens", "kv_tokens", "lost_tokens", "states", "evictions"}


class NotLiveError(CheckFailedError):
    """The server answers, without the extension."""


class UnreachableError(CheckFailedError):
    """No usable answer came."""


@dataclass(frozen=True)
class Poll:
    """What a server said at one moment.

    at_s: time.monotonic(); ranks: the section `marconi` of each data-parallel rank
    decode_tokens_per_s: as SGLang last measured it, over all ranks; gauges: by name of GAUGES' values
    """

    at_s: float
    model: str
    sglang: str
    ranks: list[dict[str, Any]]
    decode_tokens_per_s: float
    gauges: dict[str, float] = field(default_factory=dict)


class WatchedServer:
    """A server's control endpoints. url: http://HOST:PORT; api_key: sent as a bearer token if given."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        try:
            if not httpx.URL(self.url).host:
                raise ValueError("no host in it")
            self._http = direct_client(self.url, timeout_s=TIMEOUT_S, api_key=api_key)
        except BadInputError:
            raise
        except (ValueError, httpx.InvalidURL) as error:
            raise BadInputError(f"URL {url!r}: {error}; expected http://HOST:PORT") from None
        self._has_metrics = True

    def poll(self) -> Poll:
        """One look. Raises NotLiveError, UnreachableError."""
        info = self._info()
        states = info["internal_states"]
        ranks = [state["marconi"] for state in states if "marconi" in state]
        if not ranks or not all(map(_is_whole, ranks)):
            raise NotLiveError(
                f"{self.url} runs without the extension, or with an older one: start it with --enable-marconi "
                "and look for `marconi-ext … live` in its log"
            )
        return Poll(
            at_s=time.monotonic(),
            model=str(info.get("served_model_name") or info.get("model_path") or "?"),
            sglang=str(info.get("version", "?")),
            ranks=ranks,
            decode_tokens_per_s=sum(float(state.get("last_gen_throughput") or 0) for state in states),
            gauges=self._gauges(),
        )

    def tree(self, *, with_tokens: bool) -> list[dict[str, Any]]:
        """The radix tree of each data-parallel rank. Raises NotLiveError, UnreachableError."""
        key = Key.draw() if with_tokens else None
        if not self._ask_for_tree(WITH_TOKENS if key else SHAPE, key):
            ranks = self.poll().ranks  # says so where the extension isn't live
            if with_tokens and not ranks[0]["config"].get("expose_tokens", True):
                raise NotLiveError(
                    f"{self.url} keeps token ids to itself: start it with --marconi-expose-tokens true or with "
                    "--admin-api-key, or leave out --tokens"
                )
            raise NotLiveError(f"{self.url} refused to dump its tree: its extension is of another version")
        try:
            return self._all_pages(key)
        finally:
            self._ask_for_tree(OFF)

    def ask(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        """What each data-parallel rank answers to a command; `refused` in an answer says why there is none.

        Raises NotLiveError, UnreachableError.
        """
        ticket = random.SystemRandom().randrange(1, 2**31)
        text = COMMAND_PREFIX + json.dumps(command)
        taken = self._json("POST", "/set_internal_state", json={"server_args": {text: ticket}})
        if not (isinstance(taken, list) and taken and all(taken)):
            self.poll()  # says so where the extension isn't live
            raise NotLiveError(
                f"{self.url} doesn't know {command['do']!r}: its extension is of another version"
            )
        states = self._info(timeout=DUMP_TIMEOUT_S)["internal_states"]
        found = [state.get("marconi", {}).get("answers", {}) for state in states]
        if not found or not all(str(ticket) in answers for answers in found):
            raise UnreachableError(f"{self.url} sent no answer; is it very busy? try again")
        return [answers[str(ticket)] for answers in found]

    def order(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        """As `ask`, of what must be done. Raises CheckFailedError with the server's reason where every rank refuses; a
        prefix lies on the data-parallel rank that its request went to."""
        answers = self.ask(command)
        done = [answer for answer in answers if "refused" not in answer]
        if not done:
            raise CheckFailedError(f"{self.url}: {answers[0]['refused']}")
        return done

    def prefill(self, prompt: list[int], where: str, **namespace: str) -> int:
        """Send a prompt for one token of answer. Returns: its tokens that were reused. where: for messages"""
        body = {
            "input_ids": prompt,
            "sampling_params": {
                "max_new_tokens": 1,
                "temperature": 0,
                "custom_params": {"marconi": {"keep": True}},
            },
            **namespace,
        }
        try:
            answer = self._http.post("/generate", json=body, timeout=PREFILL_TIMEOUT_S)
            found = answer.json()
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise UnreachableError(f"{self.url}/generate: {error or type(error).__name__}") from None
        if answer.status_code != 200:
            said = found.get("error", found) if isinstance(found, dict) else found
            reason = said.get("message", said) if isinstance(said, dict) else said
            raise CheckFailedError(f"{where}: the server refused it: {reason}")
        try:
            return int(found["meta_info"]["cached_tokens"])
        except (KeyError, TypeError, ValueError):
            raise UnreachableError(
                f"{self.url}/generate: no answer of SGLang's; is this an SGLang server?"
            ) from None

    def tokens_of(self, body: dict[str, Any]) -> list[int]:
        """The token ids of a text or of chat messages, by the server's own tokenizer and chat template. body: of
        SGLang's /tokenize. Raises UnreachableError where it can't: it may run without a tokenizer."""
        answer = self._json("POST", "/tokenize", json=body, timeout=DUMP_TIMEOUT_S)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise UnreachableError(f"{self.url}/tokenize: sent no token ids; give input_ids instead")
        return tokens

    def _all_pages(self, key: Key | None) -> list[dict[str, Any]]:
        """Each rank's pages, joined. A rank that is through goes on sending empty ones."""
        joined: list[DumpedTree] = []
        until_s = time.monotonic() + DUMP_TIMEOUT_S
        while time.monotonic() < until_s:
            states = self._info(timeout=DUMP_TIMEOUT_S)["internal_states"]
            pages = [state.get("marconi", {}).get("tree") for state in states]
            if not pages or None in pages:
                break
            joined = joined or [DumpedTree(page, key) for page in pages]
            for tree, page in zip(joined, pages, strict=True):
                if not tree.add(page):
                    raise UnreachableError(
                        f"{self.url}: somebody else asked for its tree meanwhile; try again"
                    )
            if not any(page.get("left") for page in pages):
                return [tree.whole() for tree in joined]
            if not self._ask_for_tree(NEXT):
                break
        raise UnreachableError(f"{self.url} sent no tree; is it very busy? try again")

    def _ask_for_tree(self, wanted: int, key: Key | None = None) -> bool:
        asked = {TREE_ARGUMENT: wanted}
        if key is not None:
            asked |= dict(zip(KEY_ARGUMENTS, (key.high, key.low), strict=True))
        answer = self._json("POST", "/set_internal_state", json={"server_args": asked})
        return isinstance(answer, list) and bool(answer) and all(answer)

    def _info(self, **arguments: Any) -> dict[str, Any]:
        """What /server_info says; `internal_states` is a list of objects in it. Raises UnreachableError."""
        info = self._json("GET", "/server_info", **arguments)
        states = (info.get("internal_states") or []) if isinstance(info, dict) else None
        if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
            raise UnreachableError(f"{self.url}/server_info: not what SGLang says; is this an SGLang server?")
        return info | {"internal_states": states}

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.TimeoutException:
            raise UnreachableError(f"{self.url}{path}: no answer in time; is the server busy?") from None
        except (httpx.HTTPError, OSError) as error:
            raise UnreachableError(f"{self.url}: no server there ({error or type(error).__name__})") from None
        if answer.status_code in (401, 403):
            raise UnreachableError(
                f"{self.url}{path}: HTTP {answer.status_code}; give the server's key with --api-key"
            )
        if answer.status_code != 200:
            raise UnreachableError(f"{self.url}{path}: HTTP {answer.status_code}; is this an SGLang server?")
        try:
            return answer.json()
        except ValueError:
            raise UnreachableError(f"{self.url}{path}: not JSON; is this an SGLang server?") from None

    def _gauges(self) -> dict[str, float]:
        """SGLang's own gauges where the server exports metrics; asked for once where it doesn't."""
        if not self._has_metrics:
            return {}
        try:
            answer = self._http.get("/metrics")
        except (httpx.HTTPError, OSError):
            return {}
        self._has_metrics = answer.status_code == 200
        found: dict[str, float] = {}
        if self._has_metrics:
            for name, value in re.findall(r"^([a-z_:]+)(?:\{.*\})? ([-+0-9.eE]+)", answer.text, re.MULTILINE):
                if name in GAUGES:
                    found[GAUGES[name]] = found.get(GAUGES[name], 0.0) + float(value)
        return found


def _is_whole(rank: Any) -> bool:
    """Whether a rank's section has what this version's views read."""
    whole = isinstance(rank, dict) and rank.keys() >= SECTION and isinstance(rank["stats"], dict)
    return whole and rank["stats"].keys() >= COUNTERS
