"""Where figures come from: versions, machine, command and source revision, found without heavy imports."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from urllib.parse import unquote, urlparse

KEY_FLAG = re.compile(r"--(?:admin-)?api-key")
KEY = re.compile(rf"({KEY_FLAG.pattern}[ =]).+")  # to the end: a key may be quoted and hold blanks
PACKAGES = ("marconi-ext", "sglang", "torch", "triton", "numpy", "mistral-common")


def provenance(seed: int) -> dict:
    """All of it, ready for JSON."""
    return {
        "command": " ".join(without_keys(sys.argv)),
        "seed": seed,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "git_revision": git_revision(),
        "hardware": hardware(),
    }


def without_keys(arguments: Sequence[str]) -> list[str]:
    """A command line without the keys in it, those inside a quoted list of flags included."""
    found = [KEY.sub(r"\1***", one) for one in arguments]
    for place, flag in enumerate(found[:-1]):
        if KEY_FLAG.fullmatch(flag):
            found[place + 1] = "***"
    return found


def installed(package: str) -> str | None:
    """A package's installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def engine_command() -> str:
    """How to install the SGLang that this version was made for; works whatever we were installed from."""
    wanted = [
        r.partition(";")[0].strip() for r in _requirements() if re.search(r"extra\s*==\s*['\"]sglang['\"]", r)
    ]
    return "pip install " + " ".join(f"'{one}'" for one in wanted or ["sglang"])


def reinstall_command() -> str:
    """How to install this package again: from the clone or the wheel that it came from, where that is known."""
    try:
        url = json.loads(distribution("marconi-ext").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        url = {}
    path = unquote(urlparse(url.get("url", "")).path)
    if not path or not Path(path).exists():
        return "pip install --force-reinstall --no-deps CLONE_OR_WHEEL"
    editable = "-e " if url.get("dir_info", {}).get("editable") else ""
    return f"pip install --force-reinstall --no-deps {editable}{shlex.quote(path)}"


def _requirements() -> list[str]:
    try:
        return requires("marconi-ext") or []
    except PackageNotFoundError:
        return []


def hardware() -> dict:
    """Processor, cores that this process may use, memory, and GPUs if there are any."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpu_names(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gpu_names() -> list[str]:
    """GPUs by nvidia-smi or rocm-smi's word; empty where neither is there or answers."""
    for tool, arguments in (("nvidia-smi", ["-L"]), ("rocm-smi", ["--showproductname"])):
        if shutil.which(tool):
            try:
                found = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=20)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if found.returncode == 0:
                return [line.strip() for line in found.stdout.splitlines() if line.strip()]
    return []


def git_revision() -> str | None:
    """The revision of the source folder, or None for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
