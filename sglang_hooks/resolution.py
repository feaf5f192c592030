"""What has a say while SGLang resolves its arguments: combinations that are refused, and a default that ours needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from marconi_ext.config import ConfigError

from .compat import check_arguments
from .flags import config_of
from .hooks import Hook

logger = logging.getLogger(__name__)


def _resolve_once(original: Callable[[Any], None], server_args: Any) -> None:
    config = config_of(server_args)
    if config is None:
        original(server_args)
        return
    from sglang.srt.arg_groups.overrides import resolving_view

    view = resolving_view(server_args)
    if not getattr(server_args, "_resolution_finished", False):
        choose_extra_buffer(server_args, view)
    original(server_args)
    architecture = _architecture(view)
    if architecture is None or not _served_as_stock(architecture):
        if architecture is not None:
            refuse_for(architecture, view)
        track_nothing_lazily(server_args, view)
        check_arguments(view)
    if config.events == "resumable" and not server_args.kv_events_config:
        raise ConfigError("--marconi-events resumable: needs --kv-events-config, whose stream it changes")


def refuse_for(architecture: str, view: Any) -> None:
    """Raises: ConfigError for resolved arguments that go against exact states of this model."""
    from .recurrence.registry import family_named

    family = family_named(architecture)
    conflict = None if family is None else family.conflict_with(view, architecture)
    if conflict is not None:
        raise ConfigError(f"--enable-marconi with {architecture}: {conflict}")


def choose_extra_buffer(server_args: Any, view: Any) -> None:
    """Where nobody chose: without overlap, and with pipelines, SGLang takes `no_buffer`; ours needs the other."""
    if view.mamba_radix_cache_strategy != "auto" or view.disable_radix_cache:
        return
    if view.disaggregation_mode == "decode":  # whose prefix cache SGLang may turn off later
        return
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        model_config_of,
        supports_mamba_cache_extra_buffer,
    )

    hf_config = model_config_of(view).hf_config
    stock = _served_as_stock(hf_config.architectures[0])
    if not stock and supports_mamba_cache_extra_buffer(view, hf_config):
        declare_resolution(server_args, "marconi-ext", mamba_radix_cache_strategy="extra_buffer")


def track_nothing_lazily(server_args: Any, view: Any) -> None:
    """Lazy tracking saves slots that ours doesn't take at all at page size 1; above it SGLang tracks as usual."""
    if view.mamba_radix_cache_strategy != "extra_buffer_lazy":
        return
    from sglang.srt.arg_groups.overrides import declare_resolution

    declare_resolution(server_args, "marconi-ext", mamba_radix_cache_strategy="extra_buffer")
    logger.warning("marconi-ext: --mamba-radix-cache-strategy extra_buffer_lazy is taken as extra_buffer")


def _architecture(view: Any) -> str | None:
    """Of a model with recurrent states and a prefix cache; else None."""
    if not view.uses_mamba_radix_cache:
        return None
    from sglang.srt.arg_groups.overrides import model_config_of

    return model_config_of(view).hf_config.architectures[0]


def _served_as_stock(architecture: str) -> bool:
    """Whether the model's states aren't known to be exact: then stock's options are its own."""
    from .recurrence.registry import why_stock

    return why_stock(architecture) is not None


def _extra_buffer(original: Callable[..., bool], view: Any, hf_config: Any) -> bool:
    """Stock asks for models whose states it tracks during decode; ours serves some without."""
    if original(view, hf_config):
        return True
    if config_of(view) is None:
        return False  # where ours won't be live, stock's cache must not believe that it tracks states
    from .recurrence.registry import needs_no_tracking

    return needs_no_tracking(hf_config.architectures[0])


RESOLUTION_HOOKS = (
    Hook(
        "sglang.srt.server_args.ServerArgs.resolve_once",
        "around",
        _resolve_once,
        why="choose the extra buffer where nobody did; refuse combinations, once SGLang has resolved its defaults",
        parameters="self",
    ),
    Hook(
        "sglang.srt.arg_groups.overrides.supports_mamba_cache_extra_buffer",
        "around",
        _extra_buffer,
        why="short convolutions: states whose tracking SGLang lacks, and we don't need",
        parameters="view hf_config",
    ),
)
