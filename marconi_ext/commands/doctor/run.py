"""`marconi doctor`: whether the extension can work here, told by checks that each name what to do.

What needs SGLang is asked in a process of its own (`sglang_hooks.doctor.probe`), so that a broken installation
ends in a finding and nothing heavy is imported here.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path

import marconi_ext
from marconi_ext import __version__
from marconi_ext.results.provenance import (
    engine_command,
    gpu_names,
    hardware,
    installed,
    reinstall_command,
)
from marconi_ext.servers.engine_options import CPU_PLATFORM, environment, has_gpu

STATUSES = ("ok", "info", "live", "stock", "warning", "refused", "broken")
LEAST_PYTHON = (3, 11)
PINNED = ("torch", "triton")
PROBE_S = 300


@dataclass(frozen=True)
class Finding:
    """One check: status is one of STATUSES; fix says what to do, '' where nothing is wrong."""

    check: str
    status: str
    detail: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def examine(flags: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Yield all findings; flags: SGLang's, to be tried as well."""
    yield from python_and_packages()
    yield from machine()
    yield from entry_point_findings()
    yield from variables()
    yield kernels_package()
    if find_spec("sglang"):
        yield from probe(flags)


def shown(findings: Sequence[Finding]) -> list[Finding]:
    """The findings as a table shows them: the many names of SGLang that fit count as one row."""
    fine = [f for f in findings if f.check == "seam" and f.status in ("ok", "info")]
    rows = [f if f.check != "limits" else _limits(f) for f in findings if f not in fine]
    if fine:
        place = next(i for i, f in enumerate(findings) if f is fine[0])
        bound = sum(f.status == "info" for f in fine)
        text = f"{len(fine)} names of SGLang that we patch are there; {bound} of them are bound when a server starts"
        rows.insert(min(place, len(rows)), Finding("seams", "ok", text))
    return rows


def _limits(finding: Finding) -> Finding:
    count = finding.detail.count("; ") + 1
    text = (
        f"{count} combinations of flags are refused, with what to do: try yours with marconi doctor -- FLAGS"
    )
    return Finding("limits", "info", text)


def verdict(findings: Sequence[Finding]) -> tuple[str, int]:
    """(one sentence on all findings, exit code): 1 where something is broken or the flags would be refused."""
    broken = [finding for finding in findings if finding.status == "broken"]
    server = next((finding for finding in findings if finding.check == "server"), None)
    if broken:
        names = ", ".join(dict.fromkeys(finding.check for finding in broken))
        return f"It won't work as it is: {names}. What to do stands beside each.", 1
    warned = ", ".join(dict.fromkeys(f.check for f in findings if f.status == "warning"))
    doubt = f" Look at the warnings: {warned}." if warned else ""
    if server is None:
        return f"Ready: servers started with --enable-marconi will have it.{doubt}", 0
    if server.status == "refused":
        return f"A server with these flags would be refused: {server.detail}", 1
    return f"A server with these flags {server.detail}.{doubt}", 0


def python_and_packages() -> Iterator[Finding]:
    """Versions, and whether torch and triton are those that SGLang pins."""
    python = sys.version.split()[0]
    if sys.version_info[:2] >= LEAST_PYTHON:
        yield Finding("python", "ok", python)
    else:
        yield Finding("python", "broken", python, "use Python 3.11 or later")
    yield Finding("marconi-ext", "ok", f"{__version__} in {Path(marconi_ext.__file__).parent}")
    sglang = installed("sglang")
    if sglang is None:
        yield Finding(
            "sglang",
            "broken",
            "not installed: traces and simulator work, demo and serving don't",
            engine_command(),
        )
        return
    yield Finding("sglang", "ok", sglang)
    pins = pinned_by_sglang()
    for name in PINNED:
        found, pin = installed(name), pins.get(name)
        if found is None:
            yield Finding(name, "broken", "not installed", f"pip install {name}")
        elif pin and found.split("+")[0] != pin:
            yield Finding(
                name, "warning", f"{found}, but sglang {sglang} pins {pin}", f"pip install {name}=={pin}"
            )
        else:
            yield Finding(name, "ok", found)


def pinned_by_sglang() -> dict[str, str]:
    """Packages that the installed SGLang requires in one version, without extras."""
    pins = {}
    for requirement in requires("sglang") or []:
        name, pin, rest = requirement.partition("==")
        if pin and "extra" not in rest:
            pins[name.strip()] = rest.split(";")[0].strip()
    return pins


def machine() -> Iterator[Finding]:
    """What there is to run on."""
    found = hardware()
    yield Finding("machine", "info", f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB")
    names = gpu_names()
    if names:
        yield Finding("GPUs", "ok", "; ".join(names))
    else:
        yield Finding(
            "GPUs", "info", f"none: servers here need SGLANG_PLATFORM={CPU_PLATFORM} (the demo sets it)"
        )


def entry_point_findings() -> Iterator[Finding]:
    """Whether SGLang will find the plugin, and whether another platform is in the way."""
    for group, name in (("sglang.srt.plugins", "marconi"), ("sglang.srt.platforms", CPU_PLATFORM)):
        if any(point.name == name for point in entry_points(group=group)):
            yield Finding(f"entry point {name}", "ok", group)
        else:
            yield Finding(
                f"entry point {name}",
                "broken",
                f"missing from {group}",
                f"reinstall: {reinstall_command()}",
            )
    others = sorted({p.name for p in entry_points(group="sglang.srt.platforms")} - {CPU_PLATFORM})
    if others:
        yield Finding(
            "other platforms",
            "warning",
            f"{', '.join(others)}: with two, SGLang wants to be told which",
            f"set SGLANG_PLATFORM to {others[0]} or {CPU_PLATFORM}",
        )


def variables() -> Iterator[Finding]:
    """Environment variables that decide whether the plugin is loaded."""
    platform = os.environ.get("SGLANG_PLATFORM")
    if platform and platform != CPU_PLATFORM:
        yield Finding(
            "SGLANG_PLATFORM",
            "broken",
            f"{platform}: SGLang then skips our plugin (our package has another platform)",
            "unset SGLANG_PLATFORM",
        )
    allowed = os.environ.get("SGLANG_PLUGINS")
    if allowed and not {"marconi", CPU_PLATFORM} <= {name.strip() for name in allowed.split(",")}:
        yield Finding(
            "SGLANG_PLUGINS",
            "broken",
            f"{allowed}: lets SGLang load only these",
            f"unset it, or add marconi,{CPU_PLATFORM}",
        )
    if os.environ.get("SGLANG_USE_CPU_ENGINE"):
        yield Finding(
            "SGLANG_USE_CPU_ENGINE",
            "warning",
            "asks for SGLang's own CPU engine, which needs another sgl-kernel",
            "unset it (the demo does)",
        )


def kernels_package() -> Finding:
    """SGLang imports PyPI's package `kernels`; a folder of that name in the way breaks it."""
    spec = find_spec("kernels")
    if spec is None:
        return Finding("package kernels", "info", "not installed (comes with sglang)")
    if spec.origin is None:
        where = ", ".join(spec.submodule_search_locations or [])
        return Finding(
            "package kernels", "broken", f"shadowed by the folder {where}", "run from another folder"
        )
    try:
        return Finding("package kernels", "ok", f"{version('kernels')} in {Path(spec.origin).parent}")
    except PackageNotFoundError:
        return Finding("package kernels", "broken", f"{spec.origin} isn't PyPI's", "rename that folder")


def probe(flags: tuple[str, ...] = ()) -> Iterator[Finding]:
    """What SGLang itself says, asked in another process."""
    asked = environment(cpu=not has_gpu())
    for name in ("SGLANG_PLATFORM", "SGLANG_PLUGINS"):  # judge what this shell would start
        if name in os.environ:
            asked[name] = os.environ[name]
    with tempfile.TemporaryDirectory(prefix="marconi-doctor-") as folder:
        out = Path(folder) / "findings.json"
        command = [sys.executable, "-m", "sglang_hooks.doctor.probe", str(out), *flags]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, env=asked)
            said = (run.stderr or run.stdout).strip().splitlines()[-3:]
            ended = "" if run.returncode == 0 else f"ended with {run.returncode}: " + " | ".join(said)
        except subprocess.TimeoutExpired:
            ended = f"took over {PROBE_S} s"
        found = json.loads(out.read_text()) if out.exists() else []
    yield from (Finding(**finding) for finding in found)
    if ended:
        yield Finding(
            "SGLang", "broken", f"the check of SGLang {ended}", f"install it again: {engine_command()}"
        )
