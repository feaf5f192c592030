"""What `marconi doctor` asks SGLang, in a process of its own: `python -m sglang_hooks.doctor.probe OUT [FLAGS…]`.

Writes a JSON list of findings to OUT; with FLAGS also whether SGLang and the extension take them together.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Finding = dict[str, str]


def finding(check: str, status: str, detail: str, fix: str = "") -> Finding:
    return {"check": check, "status": status, "detail": detail, "fix": fix}


def supported() -> Iterator[Finding]:
    from marconi_ext.config import ConfigError

    from ..compat import SUPPORTED_SGLANG, check_version

    try:
        check_version()
        yield finding("SGLang supported", "ok", ", ".join(SUPPORTED_SGLANG))
    except ConfigError as error:
        yield finding("SGLang supported", "broken", str(error), f"pip install sglang=={SUPPORTED_SGLANG[-1]}")


def plugin() -> Iterator[Finding]:
    import argparse

    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    from marconi_ext.results.provenance import reinstall_command

    load_plugins()
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    if "--enable-marconi" in parser.format_help():
        yield finding("plugin", "ok", "SGLang loads it and knows --enable-marconi")
    else:
        yield finding(
            "plugin",
            "broken",
            "SGLang doesn't know --enable-marconi: the plugin wasn't loaded",
            f"unset SGLANG_PLUGINS and SGLANG_PLATFORM, or reinstall: {reinstall_command()}",
        )


def seams() -> Iterator[Finding]:
    """Runs before the plugin is loaded, whose patches would show in the signatures."""
    from ..flags import LAUNCHER_HOOKS
    from ..hooks import check_signatures
    from ..resolution import RESOLUTION_HOOKS
    from ..seams import SCHEDULER_INIT, live_hooks

    for hook in [*LAUNCHER_HOOKS, *RESOLUTION_HOOKS, SCHEDULER_INIT, *live_hooks()]:
        name = ".".join(hook.target.split(".")[-2:])
        if problems := check_signatures([hook]):
            yield finding("seam", "broken", problems[0], "install the SGLang release that is supported")
        elif hook.parameters is None:
            yield finding("seam", "info", f"{name}: bound when a server starts; {hook.why}")
        else:
            yield finding("seam", "ok", f"{name}: {hook.why}")


def kernels() -> Iterator[Finding]:
    import triton

    from marconi_kernels.mamba2 import conv_checkpoint, scan, ssm_checkpoint

    names = ", ".join(m.__name__.split(".")[-1] for m in (ssm_checkpoint, conv_checkpoint, scan))
    yield finding("kernels", "ok", f"{names} import with triton {triton.__version__}")


def device() -> Iterator[Finding]:
    import torch

    from ..cpu_platform import PLATFORM

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield finding("torch device", "ok", f"{', '.join(found)} (torch {torch.__version__})")
    else:
        yield finding("torch device", "info", f"no GPU: only the CPU platform, SGLANG_PLATFORM={PLATFORM}")


def refusals() -> Iterator[Finding]:
    from ..compat import CONFLICTS

    told = "; ".join(conflict.message for conflict in CONFLICTS)
    yield finding("limits", "info", f"--enable-marconi {told}")


def model_in(argv: list[str]) -> str | None:
    """The model that flags name; None where they name none."""
    for place, flag in enumerate(argv):
        if flag in ("--model-path", "--model") and place + 1 < len(argv):
            return argv[place + 1]
        if flag.startswith(("--model-path=", "--model=")):
            return flag.partition("=")[2]
    return argv[0] if argv and not argv[0].startswith("-") else None


def missing_folder(model: str) -> bool:
    """Whether it can only be a folder, and there is none. ORG/NAME may be a repository on the Hub."""
    path = Path(model).expanduser()
    return (model.startswith(("/", "./", "../", "~")) or model.count("/") > 1) and not path.exists()


def flags(argv: list[str]) -> Iterator[Finding]:
    """Whether SGLang and the extension take the flags together, and what the server would do for the model."""
    from sglang.srt.server_args import prepare_server_args

    from marconi_ext.config import ConfigError

    from ..cpu_platform import active
    from ..flags import config_of
    from .verdict import would_serve

    model = model_in(argv)
    if model is not None and missing_folder(model):
        yield finding(
            "your flags", "broken", f"--model-path {model}: there is no such folder", "name another one"
        )
        return
    argv = (
        ["--model-path", *argv] if argv and not argv[0].startswith("-") else argv
    )  # as `sglang serve MODEL`
    added = without_gpu(argv) if active() else []
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments = prepare_server_args([*argv, *added])
            arguments.resolve_once()
    except ConfigError as error:
        yield finding("server", "refused", str(error), "change the flags as it says")
        return
    except (SystemExit, Exception) as error:
        lines = said.getvalue().strip().splitlines() if isinstance(error, SystemExit) else [str(error)]
        last = (lines or [repr(error)])[-1].removeprefix("sglang serve: error: ")
        yield finding(
            "server", "refused", no_gpu_text(last), "see `sglang serve --help` and the flags you gave"
        )
        return
    taken = " ".join(argv) + (f" (no GPU here: judged with {' '.join(added)})" if added else "")
    yield finding("your flags", "ok", taken)
    if config_of(arguments) is None:
        why = (
            "--enable-marconi isn't given"
            if "--enable-marconi" not in argv
            else "the plugin took no settings"
        )
        yield finding("server", "stock", f"serves as stock SGLang: {why}", "add --enable-marconi")
        return
    from sglang.srt.configs.model_config import ModelConfig

    live, why = would_serve(ModelConfig.from_server_args(arguments))
    if live:
        yield finding("server", "live", f"serves with exact checkpoints: {why}")
    else:
        yield finding("server", "stock", f"serves as stock SGLang: {why}")


def without_gpu(argv: list[str]) -> list[str]:
    """Flags that the CPU platform needs and that weren't given."""
    from marconi_ext.servers.engine_options import CPU_OPTIONS, to_flags

    given = {flag.partition("=")[0] for flag in argv}
    wanted = {
        name: value for name, value in CPU_OPTIONS.items() if "--" + name.replace("_", "-") not in given
    }
    return to_flags(wanted)


def no_gpu_text(error: str) -> str:
    """SGLang's words where it finds no device to run on, in plain ones."""
    if "'torch.device' object has no attribute" in error or "No accelerator" in error:
        return f"no GPU that SGLang can use: give --device cpu with SGLANG_PLATFORM=marconi_cpu ({error})"
    return error


def main() -> None:
    out, argv = Path(sys.argv[1]), sys.argv[2:]
    probes: list[Callable[[], Iterator[Finding]]] = [supported, seams, plugin, kernels, device, refusals]
    if argv:
        probes.append(lambda: flags(argv))
    found: list[Finding] = []
    for probe in probes:
        try:
            found += probe()
        except Exception as error:
            name = getattr(probe, "__name__", "your flags")
            found.append(finding(name, "broken", f"{type(error).__name__}: {error}"))
        out.write_text(json.dumps(found))  # after each probe: a crash in one leaves the others' word


if __name__ == "__main__":
    main()
