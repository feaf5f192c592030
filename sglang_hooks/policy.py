"""The policy of one scheduler process: which classes of `marconi_ext.policies` run, and in what currency."""

from __future__ import annotations

import logging
from dataclasses import replace

from marconi_ext.config import CheckpointKind, MarconiConfig
from marconi_ext.errors import BadInputError
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.paper.tuner import Marconi
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.profiles import profile_from_config

logger = logging.getLogger(__name__)

_KINDS = {
    CheckpointKind.BRANCH: (Kind.BRANCH, Kind.BOUNDARY),
    CheckpointKind.INPUT_END: (Kind.INPUT_END,),
    CheckpointKind.PROMPT_END: (Kind.PROMPT_END,),
    CheckpointKind.LAST_TOKEN: (Kind.LAST_TOKEN, Kind.IN_ANSWER),
}
_NAMES = {
    Kind.BRANCH: "branch",
    Kind.LAST_TOKEN: "last-token",
    Kind.INPUT_END: "input-end",
    Kind.PROMPT_END: "prompt-end",
    Kind.BOUNDARY: "boundary",
    Kind.IN_ANSWER: "in-answer",
}


def kind_name(kind: int) -> str:
    """What operators call a kind of checkpoint."""
    name = _NAMES.get(Kind(kind))
    return Kind(kind).name.lower() if name is None else name


def saved_kinds(config: MarconiConfig) -> set[Kind]:
    """The policy's kinds that `--marconi-checkpoints` allows."""
    return {kind for name in config.checkpoints for kind in _KINDS[name]}


def currency_of(model_path: str) -> Currency:
    """What a hit is worth with this model, in FLOPs; states cost a slot each, however large.

    model_path: as SGLang has it. The config is read as it was written: the class that transformers makes of it
    leaves out what it has worked up, e.g. Nemotron-H's pattern of layers.
    A model without a profile counts tokens instead, said once in the log.
    """
    from transformers import PretrainedConfig

    try:
        profile = profile_from_config(PretrainedConfig.get_config_dict(model_path)[0])
    except (BadInputError, OSError, KeyError, TypeError, ZeroDivisionError) as error:
        logger.warning(
            "marconi-ext: no FLOP profile for this model (%s); states are weighed in tokens", error
        )
        return Currency()
    return replace(profile.currency(), kv_bytes_per_token=0.0)


def build_runtime(config: MarconiConfig, currency: Currency) -> PolicyRuntime:
    """A fresh policy as configured."""
    admission, eviction = parse_policy(config.policy).build(currency)
    if isinstance(eviction, Marconi):
        eviction.multiplier = config.bootstrap_multiplier
        eviction.window_requests = config.bootstrap_window_size
    return PolicyRuntime(admission, eviction, currency)
