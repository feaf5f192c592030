"""The extension's flags on SGLang's own command line, in its YAML config and in `sglang.Engine(...)`.

The validated settings ride on the ServerArgs object as bookkeeping (no field of SGLang's), which it pickles
along to the scheduler processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from marconi_ext.config import MarconiConfig, build_config, flag_name

from .compat import check_version
from .hooks import Hook

ENABLE = "enable_marconi"
_BOOKKEEPING = "_marconi_config"


def config_of(server_args: Any) -> MarconiConfig | None:
    """The settings that a ServerArgs object carries; None where the extension isn't enabled."""
    stored = getattr(server_args, _BOOKKEEPING, None)
    return None if stored is None else MarconiConfig.model_validate_json(stored)


def _attach(server_args: Any, values: dict[str, Any]) -> None:
    """Validate the flags' raw values (by field name) and store them, if the extension is enabled."""
    if not values.pop(ENABLE, False):
        return
    check_version()
    setattr(server_args, _BOOKKEEPING, build_config(values).model_dump_json())


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add our group of flags."""
    group = parser.add_argument_group("marconi-ext (exact prefix caching for hybrid models)")
    group.add_argument(
        "--enable-marconi",
        action="store_true",
        help="Save recurrent states at exact tokens during prefill: branch points, prompt ends, last tokens.",
    )
    for name, field in MarconiConfig.model_fields.items():
        # Validated later, all in one place, so that Engine and YAML give the same messages.
        group.add_argument(flag_name(name), dest=f"marconi_{name}", default=None, help=field.description)


def _add_cli_args(_result: None, parser: argparse.ArgumentParser) -> None:
    add_flags(parser)


def _from_cli_args(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    values = {name: getattr(args, f"marconi_{name}", None) for name in MarconiConfig.model_fields}
    server_args = original(cls, args)
    try:
        _attach(server_args, {ENABLE: getattr(args, ENABLE, False), **values})
    except ValueError as error:
        argparse.ArgumentParser(prog="sglang serve").error(str(error))
    return server_args


def add_engine_arguments() -> None:
    """Let `sglang.Engine(enable_marconi=True, marconi_checkpoints=…)` build its ServerArgs through us.

    Target: Engine.server_args_class, a class attribute that Engine.__init__ calls after loading plugins.
    Why: ServerArgs is a closed struct that refuses keywords which are no fields of its own.
    """
    from sglang.srt.entrypoints.engine import Engine

    server_args_class = Engine.server_args_class
    if getattr(server_args_class, "is_marconi", False):
        return

    class _ServerArgsFactory:
        """Not a function, which Python would bind to the engine."""

        is_marconi = True

        def __call__(self, **kwargs: Any) -> Any:
            values = {
                name: kwargs.pop(f"marconi_{name}")
                for name in MarconiConfig.model_fields
                if f"marconi_{name}" in kwargs
            }
            values[ENABLE] = kwargs.pop(ENABLE, False)
            server_args = server_args_class(**kwargs)
            _attach(server_args, values)
            return server_args

    Engine.server_args_class = _ServerArgsFactory()


_SERVER_ARGS = "sglang.srt.server_args.ServerArgs"

LAUNCHER_HOOKS = (
    Hook(
        f"{_SERVER_ARGS}.add_cli_args",
        "after",
        _add_cli_args,
        why="our flags beside SGLang's own, in --help and in YAML configs",
        parameters="parser",
    ),
    Hook(
        f"{_SERVER_ARGS}.from_cli_args",
        "around",
        _from_cli_args,
        why="validate our flags and attach them to the arguments",
        parameters="args",
    ),
)
