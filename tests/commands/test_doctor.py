"""The doctor names what is broken, says what to do, and exits 1; its own process never imports SGLang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marconi_ext.commands.doctor import run as doctor


def run(tmp_path: Path, *arguments: str, cwd: Path | None = None, **environment: str):
    out = tmp_path / "doctor.json"
    code = "from marconi_ext.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json", str(out), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    return found, json.loads(out.read_text())


def by_check(findings) -> dict[str, doctor.Finding]:
    return {finding.check: finding for finding in findings}


def test_this_installation_is_healthy(tmp_path: Path) -> None:
    found, document = run(tmp_path)
    broken = [f for f in document["findings"] if f["status"] == "broken"]
    assert (found.returncode, document["ok"], broken) == (0, True, [])
    checks = {f["check"] for f in document["findings"]}
    assert {"sglang", "torch", "plugin", "seam", "kernels", "would refuse"} <= checks
    assert "would refuse" in found.stdout


def test_flags_are_tried_and_a_shadowing_folder_is_seen(tmp_path: Path) -> None:
    from marconi_ext.models.toy_model import write_model

    (tmp_path / "kernels").mkdir()
    model = write_model(tmp_path / "toy")
    wanted = ("--model-path", str(model), "--attention-backend", "torch_native", "--enable-marconi")
    found, document = run(tmp_path, "--", *wanted, "--disable-radix-cache", "--device", "cpu")
    (flags,) = (f for f in document["findings"] if f["check"] == "your flags")
    assert found.returncode == 1 and flags["status"] == "broken"
    assert "--disable-radix-cache" in flags["detail"]


def test_variables_that_keep_the_plugin_out_are_broken(monkeypatch) -> None:
    for name in ("SGLANG_PLATFORM", "SGLANG_PLUGINS", "SGLANG_USE_CPU_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    assert list(doctor.variables()) == []
    monkeypatch.setenv("SGLANG_PLATFORM", "somebody_elses")
    monkeypatch.setenv("SGLANG_PLUGINS", "others")
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    found = by_check(doctor.variables())
    assert found["SGLANG_PLATFORM"].status == found["SGLANG_PLUGINS"].status == "broken"
    assert found["SGLANG_USE_CPU_ENGINE"].status == "warning"
    assert all(finding.fix for finding in found.values())


def test_without_sglang_the_doctor_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    found = by_check(doctor.python_and_packages())
    assert found["sglang"].status == "broken" and "marconi-ext[sglang]" in found["sglang"].fix


def test_another_version_than_sglang_pins_is_a_warning(monkeypatch) -> None:
    monkeypatch.setattr(
        doctor, "installed", lambda name: {"sglang": "0.5.23", "torch": "2.0.0+cpu"}.get(name)
    )
    monkeypatch.setattr(doctor, "pinned_by_sglang", lambda: {"torch": "2.14.1"})
    found = by_check(doctor.python_and_packages())
    assert found["torch"].status == "warning" and "2.14.1" in found["torch"].fix
    assert found["triton"].status == "broken"


def test_a_missing_entry_point_is_broken(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "entry_points", lambda group: [])
    assert [f.status for f in doctor.entry_point_findings()] == ["broken", "broken"]


@pytest.mark.parametrize("crash", ["import os; os._exit(9)", "import no_such_module"])
def test_a_probe_that_crashes_is_a_finding(monkeypatch, tmp_path: Path, crash: str) -> None:
    fake = tmp_path / "fake-python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{crash}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(fake))
    (finding,) = doctor.probe()
    assert finding.status == "broken" and "ended with" in finding.detail
