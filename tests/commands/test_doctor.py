"""The doctor names what is broken, says what to do, and exits 1; its own process never imports SGLang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marconi_ext.commands.doctor import run as doctor
from marconi_ext.commands.doctor.run import Finding, shown, verdict
from marconi_ext.results.provenance import engine_command, reinstall_command


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


@pytest.mark.sglang
def test_this_installation_is_healthy(tmp_path: Path) -> None:
    found, document = run(tmp_path)
    broken = [f for f in document["findings"] if f["status"] == "broken"]
    assert (found.returncode, document["ok"], broken) == (0, True, [])
    checks = {f["check"] for f in document["findings"]}
    assert {"sglang", "torch", "plugin", "seam", "kernels", "limits"} <= checks
    assert found.stdout.rstrip().splitlines()[-1].startswith("Ready: ")
    assert found.stdout.count("seam") == 1  # one row for all names that fit


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.sglang
def test_the_verdict_says_what_the_server_would_do(tmp_path: Path) -> None:
    from marconi_ext.models.toy_model import write_model

    (tmp_path / "kernels").mkdir()
    model = write_model(tmp_path / "toy")
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text(json.dumps(LLAMA))
    for path, flags, status, words, code in (
        (model, ("--enable-marconi", "--disable-radix-cache"), "refused", "--disable-radix-cache", 1),
        (model, ("--enable-marconi",), "live", "Mamba2", 0),
        (model, (), "stock", "--enable-marconi isn't given", 0),
        (llama, ("--enable-marconi",), "stock", "LlamaForCausalLM has no recurrent state", 0),
    ):
        found, document = run(tmp_path, "--", "--model-path", str(path), *flags)
        (server,) = (f for f in document["findings"] if f["check"] == "server")
        assert (server["status"], found.returncode) == (status, code), (server, found.stdout)
        assert words in server["detail"] and words in document["verdict"]
        assert document["verdict"] in found.stdout
    found, document = run(tmp_path, "--", "--model-path", str(tmp_path / "none"), "--enable-marconi")
    details = " ".join(finding["detail"] for finding in document["findings"])
    assert found.returncode == 1 and "there is no such folder" in details


def test_a_verdict_for_every_state_of_things() -> None:
    fine, warned = Finding("python", "ok", "3.11"), Finding("torch", "warning", "2.0", "pip install torch")
    broken = Finding("plugin", "broken", "not loaded", "reinstall")
    assert verdict([fine]) == ("Ready: servers started with --enable-marconi will have it.", 0)
    assert verdict([fine, warned])[0].endswith("Look at the warnings: torch.")
    assert verdict([fine, broken]) == ("It won't work as it is: plugin. What to do stands beside each.", 1)
    seams = [Finding("seam", "ok", "a"), Finding("seam", "info", "b"), Finding("seam", "broken", "c")]
    assert [f.status for f in shown([fine, *seams])] == ["ok", "ok", "broken"]


def test_advice_works_for_a_package_that_no_index_has() -> None:
    assert engine_command().startswith("pip install 'sglang==")
    assert "marconi-ext" not in engine_command()
    where = reinstall_command().rpartition(" ")[2]
    assert where == "CLONE_OR_WHEEL" or Path(where).exists()


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
    assert found["sglang"].status == "broken" and found["sglang"].fix == engine_command()


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
