"""The extension's settings: what SGLang's command line, Engine and YAML config accept, validated once."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from marconi_ext.errors import BadInputError
from marconi_ext.policies.quotas import parse_quotas
from marconi_ext.policies.registry import PolicyName, eviction_names, parse_policy


class CheckpointKind(StrEnum):
    """Where in a request a recurrent state may be saved."""

    BRANCH = "branch"  # where the request leaves what the KV cache already holds
    INPUT_END = "input-end"  # the last token of the prompt that the next turn repeats
    PROMPT_END = "prompt-end"  # its last token but one: the last one must be computed
    LAST_TOKEN = "last-token"  # after the last decoded token, or inside an answer


ALL_KINDS = tuple(CheckpointKind)
EXACT_ADMISSIONS = ("judicious", "exact", "selective", "foresight", "fork-predictor")
"""Admissions that a server can follow: states at exact tokens, known when the prompt has been matched."""


class ConfigError(ValueError):
    """A flag has a value that can't be used; the message names the flag and the fix."""


def _parse_kinds(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.strip() == "all":
        return ALL_KINDS
    names = [name.strip() for name in value.split(",") if name.strip()]
    known = [kind.value for kind in CheckpointKind]
    for name in names:
        if name not in known:
            raise ValueError(f"no checkpoint kind {name!r}; choose from {', '.join(known)}, or 'all'")
    if not names:
        raise ValueError(f"no checkpoint kind given; choose from {', '.join(known)}, or 'all'")
    return tuple(kind for kind in CheckpointKind if kind.value in names)


def _parse_eff_weight(value: object) -> object:
    if isinstance(value, str) and value != "auto":
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"expected 'auto' or a number of at least 0, got {value!r}") from None
    if isinstance(value, float | int) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"expected 'auto' or a finite number of at least 0, got {value}")
    return value


def _parse_message_tokens(value: object) -> object:
    if not isinstance(value, str) or value in ("auto", "none"):
        return value
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise ValueError(f"expected 'auto', 'none' or token ids as in 5,6, got {value!r}") from None


def can_serve(name: PolicyName) -> bool:
    """Whether a server can follow this policy."""
    return name.family == "online" and name.admission in EXACT_ADMISSIONS


def _parse_eviction(value: object) -> object:
    if value is None:
        return None
    try:
        name = parse_policy(str(value))
    except BadInputError as error:
        raise ValueError(str(error).removeprefix("--policy: ")) from None
    if not can_serve(name):
        raise ValueError(
            f"{value!r} is for simulation only; a server takes an eviction of {', '.join(eviction_names())}, "
            f"after an admission of {', '.join(EXACT_ADMISSIONS)}"
        )
    return value


def _parse_quotas(value: object) -> object:
    return parse_quotas(value) if isinstance(value, str) else value


class MarconiConfig(BaseModel):
    """Validated settings; every field is a flag `--marconi-FIELD` of SGLang's command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    eviction: Annotated[str | None, BeforeValidator(_parse_eviction)] = Field(
        None,
        description="Which states to keep: lru, seglen, flop-aware:ALPHA, marconi (the paper's, its alpha tuned "
        "online), gittins-basic or gittins, or ADMISSION+EVICTION as in 'marconi simulate'. Default: gittins.",
    )
    eff_weight: Annotated[Literal["auto"] | float, BeforeValidator(_parse_eff_weight)] = Field(
        "auto",
        description="Weight (alpha) of compute saved per byte against recency in the paper's eviction: 'auto' "
        "tunes it from recent requests, a number fixes it (and chooses that eviction).",
    )
    bootstrap_window_size: int | None = Field(
        None,
        ge=1,
        description="Requests to record before the first tuning round. Default: bootstrap multiplier x the "
        "requests seen before the first eviction.",
    )
    bootstrap_multiplier: int = Field(
        5,
        ge=1,
        description="Bootstrap window = this x the requests seen before the first eviction (15 for chat).",
    )
    tuning_interval: int | None = Field(
        None, ge=1, description="Requests between tuning rounds after the first. Default: tune once."
    )
    checkpoints: Annotated[tuple[CheckpointKind, ...], BeforeValidator(_parse_kinds)] = Field(
        ALL_KINDS,
        description="Which recurrent states to save: a comma-separated list of "
        + ", ".join(ALL_KINDS)
        + "; or 'all'.",
    )

    message_tokens: Annotated[
        Literal["auto", "none"] | tuple[NonNegativeInt, ...], BeforeValidator(_parse_message_tokens)
    ] = Field(
        "auto",
        description="Token ids after which a message's text begins, comma-separated: requests often part there. "
        "'auto' finds them in the chat template, 'none' leaves them out.",
    )

    expose_tokens: bool = Field(
        False,
        description="Let 'marconi tree --tokens' and 'marconi explain' show token ids (true or false). Default: false.",
    )
    events: Literal["none", "states", "resumable"] = Field(
        "none",
        description="Events for routers: 'states' tells on a socket of its own which prefixes can be resumed, "
        "'resumable' makes SGLang's KV events leave out KV that no state makes reusable (docs/events.md).",
    )
    events_config: str = Field(
        '{"publisher": "zmq", "endpoint": "tcp://*:5757", "topic": "states"}',
        description="Where the events of 'states' go, as JSON like that of --kv-events-config.",
    )

    pin_share: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of the state slots, and of the KV pool, that prefixes pinned by 'marconi pin' may hold "
        "(0 to 0.5).",
    )
    quotas: Annotated[dict[str, dict[str, float]], BeforeValidator(_parse_quotas)] = Field(
        {},
        description="Shares of the state slots by tenant (extra_key, else cache_salt), as JSON: "
        '{"chat": {"floor": 0.3}, "batch": {"ceiling": 0.2}, "*": {"ceiling": 0.5}}; * is all others together.',
    )
    storage_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="With --hicache-storage-backend: the share of the states that reach the host, those worth most, "
        "that is written to storage, with the KV that they need. Default: all.",
    )
    remember: str | None = Field(
        None,
        description="File in which the most valuable inner prefixes are kept, as token ids, for 'marconi warm' after "
        "the next start. Default: none is.",
    )
    remember_states: int = Field(32, ge=1, description="How many prefixes --marconi-remember keeps at most.")

    @property
    def policy(self) -> str:
        """The policy's name as `marconi simulate --policy` takes it."""
        if self.eff_weight == "auto":
            return self.eviction or "gittins"
        return f"flop-aware:{self.eff_weight}"

    @model_validator(mode="after")
    def _events_go_somewhere(self) -> MarconiConfig:
        try:
            settings = json.loads(self.events_config)
        except ValueError as error:
            raise ValueError(f"--marconi-events-config: no JSON: {error}") from None
        if not isinstance(settings, dict):
            raise ValueError("--marconi-events-config: want a JSON object, as --kv-events-config takes it")
        return self

    @model_validator(mode="after")
    def _one_alpha(self) -> MarconiConfig:
        if self.eff_weight != "auto" and self.eviction not in (None, "marconi"):
            raise ValueError(
                f"--marconi-eff-weight {self.eff_weight} fixes the alpha of --marconi-eviction marconi; "
                f"leave it out with {self.eviction}"
            )
        return self


def flag_name(field: str) -> str:
    """The command-line flag of a field: `eff_weight` → `--marconi-eff-weight`."""
    return "--marconi-" + field.replace("_", "-")


def build_config(values: dict[str, object]) -> MarconiConfig:
    """Validate raw flag values; None means "not given".

    Raises:
        ConfigError: names the flag, what was given and what is accepted.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return MarconiConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # of several flags together; the message names them
            raise ConfigError(reason) from None
        raise ConfigError(f"{flag_name(field)}: {reason} (got {first['input']!r})") from None
