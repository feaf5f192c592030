"""Live equals simulated: the same requests through a running server and through its rules, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from marconi_ext.config import EXACT_ADMISSIONS, can_serve
from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.messages import MessageHeaders
from marconi_ext.policies.paper.background import replayed
from marconi_ext.policies.paper.tuner import Marconi
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.replay.client import OK, GenerateClient
from marconi_ext.servers.arms import known_arms, require_status
from marconi_ext.servers.engine_options import CPU_OPTIONS, ModelFacts, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec
from marconi_ext.simulator.live_rules import LiveRules
from marconi_ext.traces.script import Histories, Script, in_order

PREFILL_TOKENS = 8_192  # a prompt up to this long is prefilled in one piece, as the simulator has it


@dataclass(frozen=True)
class VerifyOptions:
    """slots, tokens: the server's two pools; extra_flags: for its command line; log: file that keeps its log."""

    model_path: Path
    cpu: bool
    scripts: list[Script]
    requests: int
    policy: str
    slots: int
    tokens: int
    extra_flags: tuple[str, ...] = ()
    start_timeout_s: float = 300.0
    log: Path | None = None


@dataclass(frozen=True)
class Compared:
    """One request. live, simulated: prompt tokens that skipped prefill."""

    number: int
    session_id: str
    turn: int
    prompt_tokens: int
    kv_tokens: int
    live: int
    simulated: int


@dataclass
class Verification:
    """All requests, and what both sides hold at the end: (states, KV tokens)."""

    policy: str
    slots: int
    tokens: int
    requests: list[Compared] = field(default_factory=list)
    live_holds: tuple[int, int] = (0, 0)
    simulated_holds: tuple[int, int] = (0, 0)

    @property
    def differing(self) -> list[Compared]:
        return [request for request in self.requests if request.live != request.simulated]

    @property
    def agrees(self) -> bool:
        return not self.differing and self.live_holds == self.simulated_holds


def require_live_policy(text: str) -> str:
    """A policy that a server can follow, as given. Raises BadInputError."""
    if not can_serve(parse_policy(text)):
        raise BadInputError(
            f"--policy {text}: no server follows it; admissions: {', '.join(EXACT_ADMISSIONS)}"
        )
    return text


def verify(options: VerifyOptions, on_request: Callable[[Served], None]) -> Verification:
    """Start a server, send the scripts one request at a time, and simulate the same. Its own answers are history.

    Raises CheckFailedError where a request fails or the server is not what it should be.
    """
    flags = to_flags(
        {
            "model_path": options.model_path,
            **(CPU_OPTIONS if options.cpu else {}),
            "max_total_tokens": options.tokens,
            "max_mamba_cache_size": options.slots,
            "chunked_prefill_size": PREFILL_TOKENS,
            "skip_tokenizer_init": True,
            "skip_server_warmup": True,  # its requests would be cached, and the simulator knows nothing of them
            "enable_marconi": True,
            "marconi_eviction": options.policy,
        }
    )
    spec = ServerSpec((*flags, *options.extra_flags), environment(cpu=options.cpu))
    with Server(spec, options.log) as server:
        server.start(options.start_timeout_s)
        arm = known_arms(ModelFacts(options.model_path).chunk_tokens)["marconi"]
        require_status(arm, server.log_text())
        before = _section(server)
        if before["policy"]["requests"]:
            raise CheckFailedError(
                "the server has served requests before the first of ours; it can't be compared"
            )
        result = Verification(options.policy, before["slots"]["pool"], before["kv"]["pool"])
        served = asyncio.run(_send(options, server, on_request))
        after = _section(server)
        result.live_holds = (after["slots"]["cached"], after["kv"]["cached"])
        rules = simulator_of(after)
        for one in served:
            simulated = rules.serve(one.prompt, one.answer)
            result.requests.append(
                Compared(
                    len(result.requests),
                    one.session_id,
                    one.turn,
                    len(one.prompt),
                    simulated.kv_tokens,
                    one.cached_tokens,
                    simulated.hit_tokens,
                )
            )
        rules.check()
        result.simulated_holds = (rules.tree.num_states, rules.tree.num_tokens)
    return result


def simulator_of(section: dict) -> LiveRules:
    """The simulator of a server, from what it says of itself in /server_info."""
    policy = section["policy"]
    currency = Currency(**policy["currency"])
    admission, eviction = parse_policy(policy["name"]).build(currency)
    kinds = [Kind(kind) for kind in policy["kinds"]]
    tuner = None
    if isinstance(eviction, Marconi):
        eviction.window_requests, eviction.multiplier, interval = policy["bootstrap"]
        tuner = replayed(eviction, interval, [request for request, _ in policy["tunings"]])
    return LiveRules(
        section["slots"]["pool"],
        section["kv"]["pool"],
        admission,
        eviction,
        currency,
        kinds,
        tuner,
        section["kv"].get("shared_bytes"),
        MessageHeaders.from_dict(policy["messages"]),
    )


@dataclass(frozen=True, eq=False)
class Served:
    """One request as the server answered it. prompt, answer: int32[n]"""

    session_id: str
    turn: int
    prompt: np.ndarray
    answer: np.ndarray
    cached_tokens: int


async def _send(options: VerifyOptions, server: Server, on_request: Callable[[Served], None]) -> list[Served]:
    histories, found = Histories(options.scripts), []
    async with GenerateClient(server.url, timeout_s=600) as client:
        for number, (script, turn) in enumerate(in_order(options.scripts)[: options.requests]):
            prompt = np.asarray(histories.prompt(script, turn), np.int32)
            answer = await client.generate(prompt, script.turns[turn].answer_tokens)
            if answer.status != OK:
                raise CheckFailedError(
                    f"request {number} ({script.session_id}, turn {turn}): {answer.status}: {answer.error}"
                )
            histories.answered(script, prompt, answer.output_ids)
            found.append(
                Served(script.session_id, turn, prompt, answer.output_ids, int(answer.cached_tokens or 0))
            )
            on_request(found[-1])
    return found


def _section(server: Server) -> dict:
    return server.info()["internal_states"][0]["marconi"]
