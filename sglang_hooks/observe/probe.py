"""What `marconi doctor` asks SGLang, in a process of its own: `python -m sglang_hooks.observe.probe OUT [FLAGS…]`.

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
            "unset SGLANG_PLUGINS and SGLANG_PLATFORM, or reinstall: pip install --force-reinstall marconi-ext",
        )


def seams() -> Iterator[Finding]:
    """Runs before the plugin is loaded, whose patches would show in the signatures."""
    from ..flags import LAUNCHER_HOOKS
    from ..seams import LIVE_HOOKS, SCHEDULER_INIT, check_signatures

    for hook in [*LAUNCHER_HOOKS, SCHEDULER_INIT, *LIVE_HOOKS]:
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

    for conflict in CONFLICTS:
        yield finding("would refuse", "info", f"--enable-marconi {conflict.message}")


def flags(argv: list[str]) -> Iterator[Finding]:
    from sglang.srt.server_args import prepare_server_args

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            prepare_server_args(argv).resolve_once()
    except (SystemExit, Exception) as error:
        lines = said.getvalue().strip().splitlines() if isinstance(error, SystemExit) else [str(error)]
        yield finding("your flags", "broken", (lines or [repr(error)])[-1])
        return
    yield finding("your flags", "ok", " ".join(argv))


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
