"""`marconi kernels report`: what the checkpoint kernels cost on GPUs, found out without one."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.output import check_writable, print_table, stderr_console, tables, write_json

WIDTH = 110

app = typer.Typer(no_args_is_help=True, help="Checkpoint kernels: resources, bytes, estimated overhead.")


@app.callback()
def kernels() -> None:
    """Checkpoint kernels: resources, bytes, estimated overhead."""


@app.command()
def report(
    json: Annotated[
        Path | None, typer.Option(metavar="FILE|-", help="Write the whole report as JSON.")
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="GPU of the printed estimates, e.g. a100, h100, b200, mi300x.")
    ] = "h100",
) -> None:
    """Compile the kernels for sm_80, sm_90, sm_100 and gfx942; print resources, costs and estimates.

    Needs torch and triton, but no GPU. Exit code 1 where a kernel spills or exceeds its committed budget.
    """
    from marconi_ext.profiles.gpus import GPUS, find_gpu
    from marconi_ext.profiles.shapes import SHAPES
    from marconi_ext.results.provenance import engine_command

    try:
        from marconi_kernels.report.kernel_report import build_report, compile_count
    except ImportError as error:
        raise BadInputError(
            f"kernels report needs torch and triton ({error.name} is missing): {engine_command()}"
        ) from error
    check_writable(json)
    gpu = find_gpu(hardware, "--hardware")

    from rich.progress import Progress

    from marconi_ext.commands.kernels.show import cost_table, estimate_table, resource_table

    try:
        with Progress(console=stderr_console(), transient=True) as progress:
            task = progress.add_task("compiling", total=compile_count(SHAPES))
            result = build_report(
                SHAPES,
                tuple(dict.fromkeys([*GPUS.values(), gpu])),
                on_done=lambda: progress.advance(task),
            )
    except RuntimeError as error:  # Triton's interpreter is on
        raise BadInputError(f"kernels report: {error}") from error
    if json is not None:
        write_json(json, result)
    console = tables(json, WIDTH)
    print_table(console, resource_table(result["resources"]))
    print_table(console, cost_table(result["costs"]))
    print_table(console, estimate_table(result["estimates"], gpu.name, prefill_tokens=8192))
    if result["over_budget"]:
        raise CheckFailedError("\n".join(result["over_budget"]))
