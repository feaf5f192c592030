"""The `marconi` command: a table of sub-commands, each imported only when it is asked for."""

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from marconi_ext import __version__
from marconi_ext.errors import BadInputError, CheckFailedError

# name -> (module, attribute): a plain function, or a typer app where the command has sub-commands of its own.
# Command modules import nothing heavy at the top, so that `marconi --help` stays quick.
COMMANDS: dict[str, tuple[str, str]] = {
    "bench": ("marconi_ext.commands.bench.cli", "bench"),
    "dashboard": ("marconi_ext.commands.dashboard", "dashboard"),
    "demo": ("marconi_ext.commands.demo.cli", "demo"),
    "doctor": ("marconi_ext.commands.doctor.cli", "doctor"),
    "explain": ("marconi_ext.commands.explain", "explain"),
    "kernels": ("marconi_ext.commands.kernels.cli", "app"),
    "model": ("marconi_ext.commands.model", "model"),
    "figures": ("marconi_ext.commands.figures", "figures"),
    "pin": ("marconi_ext.commands.pin", "pin"),
    "replay": ("marconi_ext.commands.replay.cli", "replay"),
    "report": ("marconi_ext.commands.report", "report"),
    "simulate": ("marconi_ext.commands.simulate.cli", "simulate"),
    "size": ("marconi_ext.commands.size.cli", "size"),
    "top": ("marconi_ext.commands.top", "top"),
    "trace": ("marconi_ext.commands.trace.cli", "app"),
    "tree": ("marconi_ext.commands.tree", "tree"),
    "verify": ("marconi_ext.commands.verify.cli", "verify"),
    "warm": ("marconi_ext.commands.warm", "warm"),
    "watch": ("marconi_ext.commands.watch", "watch"),
}

HELP = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """A group that imports a command's module when the command is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        target = getattr(importlib.import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            single = typer.Typer(add_completion=False, context_settings=HELP)
            single.command(cmd_name)(target)
            target = single
        command = typer.main.get_command(target)
        command.name = cmd_name
        command.context_settings = {**HELP, **(command.context_settings or {})}
        return command


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    help="Exact prefix caching for hybrid LLMs: demo, traces, checks.",
)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"marconi-ext {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Exact prefix caching for hybrid LLMs: demo, traces, checks."""


def main() -> None:
    """Entry point: exit 0 when all went well, 1 where a check failed, 2 on bad usage, 130 on Ctrl-C."""
    try:
        app()
    except BadInputError as error:
        sys.exit(fail(error, 2))
    except CheckFailedError as error:
        sys.exit(fail(error, 1))
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        sys.stderr.close()
        sys.exit(0)


def fail(error: Exception, code: int) -> int:
    print(f"marconi: {error}", file=sys.stderr)
    return code
