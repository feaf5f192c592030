"""What the extension supports, checked before anything is allocated."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from marconi_ext.config import ConfigError

from . import deployments
from .deployments import Conflict

logger = logging.getLogger(__name__)

SUPPORTED_SGLANG = ("0.5.23",)
"""The hooks patch private names, so each release is added here once its seams were checked."""


def _prefill_graph_is_full(arguments: Any) -> bool:
    """Given by its own option, or by the config that SGLang resolves all of them to."""
    phase = getattr(arguments.cuda_graph_config, "prefill", None)
    return "full" in (arguments.cuda_graph_backend_prefill, getattr(phase, "backend", None))


CONFLICTS = (
    *deployments.conflicts(),
    Conflict(lambda a: a.disable_radix_cache, "needs the radix cache: drop --disable-radix-cache"),
    Conflict(
        lambda a: a.mamba_radix_cache_strategy == "no_buffer",
        "needs --mamba-radix-cache-strategy extra_buffer (no_buffer was given, or chosen because SGLang "
        "tracks no states of this model)",
    ),
    Conflict(
        lambda a: a.enable_int8_mamba_checkpoint, "keeps exact states: drop --enable-int8-mamba-checkpoint"
    ),
    Conflict(
        lambda a: a.radix_cache_backend is not None,
        "brings its own radix cache: drop --radix-cache-backend",
    ),
    Conflict(lambda a: a.enable_lmcache, "does not support --enable-lmcache"),
    Conflict(lambda a: a.enable_flexkv, "does not support --enable-flexkv"),
    Conflict(
        lambda a: a.enable_unified_cache_external_linker,
        "does not support --enable-unified-cache-external-linker",
    ),
    Conflict(
        lambda a: a.enable_streaming_session,
        "does not support --enable-streaming-session: between turns such a session holds its KV and its state itself, "
        "outside the tree: use sessions without it, with --enable-session-radix-cache if they may not be evicted",
    ),
    Conflict(
        lambda a: a.enable_unified_memory and (a.enable_hierarchical_cache or a.enable_session_radix_cache),
        "supports --enable-unified-memory in device memory alone: drop it, or --enable-hierarchical-cache and "
        "--enable-session-radix-cache",
    ),
    Conflict(
        lambda a: a.enable_unified_memory and a.radix_eviction_policy.lower() != "lru",
        "orders what leaves a shared buffer itself: drop --enable-unified-memory or --radix-eviction-policy",
    ),
    Conflict(
        lambda a: a.enable_linear_replayssm or a.enable_linear_replayssm_spec,
        "needs states that are up to date: drop --enable-linear-replayssm and --enable-linear-replayssm-spec",
    ),
    Conflict(
        _prefill_graph_is_full,
        "can't save states inside a full prefill graph: drop --cuda-graph-backend-prefill full, or the same of "
        "--cuda-graph-config",
    ),
    Conflict(
        lambda a: a.enable_deterministic_inference,
        "keeps states anywhere in a prompt, and a prefill that goes on from one rounds otherwise than one of the whole "
        "prompt (logprobs to about 1e-5): drop --enable-deterministic-inference",
    ),
    Conflict(lambda a: a.enable_mis, "does not support --enable-mis: drop it"),
)


def check_version() -> None:
    """Raises: ConfigError if the installed SGLang is not one whose seams are known."""
    try:
        installed = version("sglang")
    except PackageNotFoundError:
        raise ConfigError(f"SGLang is not installed: pip install sglang=={SUPPORTED_SGLANG[-1]}") from None
    if installed not in SUPPORTED_SGLANG:
        raise ConfigError(
            f"--enable-marconi supports SGLang {', '.join(SUPPORTED_SGLANG)}, but {installed} is installed: "
            f"pip install sglang=={SUPPORTED_SGLANG[-1]}, or start without the flag"
        )


def _warn_of_retraction(arguments: Any) -> None:
    """SGLang 0.5.23, the extension on or off (`bench/soak_pair.py --overlap --stock`)."""
    keeps = arguments.disaggregation_decode_retraction_backup != "none"
    if arguments.disaggregation_mode == "decode" and keeps and not arguments.disable_overlap_schedule:
        logger.warning(
            "marconi-ext: with overlap scheduling SGLang resumes a request that a decode server has retracted from a "
            "state that is one token ahead, and answers wrong: add --disable-overlap-schedule, or "
            "--disaggregation-decode-retraction-backup none"
        )


def check_arguments(arguments: Any) -> None:
    """Refuse resolved SGLang arguments that the extension can't work with.

    A model without recurrent state passes: it is served as stock, and the scheduler says so.
    Raises: ConfigError that lists every conflict and its fix.
    """
    if arguments.disable_radix_cache is False and not arguments.uses_mamba_radix_cache:
        return
    _warn_of_retraction(arguments)
    if arguments.disaggregation_mode == "decode" and arguments.disable_radix_cache:
        logger.warning(
            "marconi-ext: a decode server has no prefix cache without --disaggregation-decode-enable-radix-cache, so "
            "--enable-marconi does nothing here; the prefill servers reuse prompts"
        )
        return
    found = [conflict.message for conflict in CONFLICTS if conflict.applies(arguments)]
    if found:
        raise ConfigError("--enable-marconi " + "; --enable-marconi ".join(found))
    if arguments.mamba_max_states_per_path >= 0:
        logger.warning(
            "marconi-ext: --mamba-max-states-per-path %d has no effect: the policy decides which states stay",
            arguments.mamba_max_states_per_path,
        )
