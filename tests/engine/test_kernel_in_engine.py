"""Interpreter mode: the Triton kernels inside the running engine save what the definition says.

A plugin of this test's own records each checkpointing call in the scheduler process.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from live_server import plugin_environment, running

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_kernels.mamba2.ssm_checkpoint import ssm_states_reference

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Records by request: `first`; `branch`, which leaves it after 30 tokens; `alone`, those 30 tokens and
    one more from an empty cache; `resumed`, which goes on from there."""
    folder = tmp_path_factory.mktemp("recorder")
    write_model(folder / "model", ToyModel(chunk_size=16))
    env = {
        "MARCONI_CPU_MODE": "interpreter",
        "CHECKPOINT_RECORDER_FOLDER": str(folder),
        **plugin_environment(folder / "plugin", "checkpoint_recorder"),
    }
    first = [1_000 + 7 * i for i in range(45)]
    branch = first[:30] + [2_000 + 5 * i for i in range(9)]
    by_request, seen = {}, set()
    kinds = "branch,prompt-end,last-token"  # ends of inputs are learned from prompts as alike as these
    with running(folder / "model", env=env, marconi_checkpoints=kinds) as live:
        for name, prompt in {
            "first": first,
            "branch": branch,
            "alone": first[:31],
            "resumed": [*first[:30], 3_000, 3_001, *range(1_500, 1_518)],
        }.items():
            if name == "alone":
                live.server.flush_cache()
            answer = live.generate(prompt, 1)
            assert answer.cached_tokens == (30 if name == "resumed" else 0)
            files = sorted(set(folder.glob("*.pt")) - seen)
            seen |= set(files)
            loaded = [torch.load(file) for file in files]
            computed = len(prompt) - answer.cached_tokens  # the server's health checks generate a token, too
            by_request[name] = [r for r in loaded if int(r["cu_seqlens"][-1]) == computed]
    return by_request


def of_kind(records: list[dict], kind: str) -> list[dict]:
    return [record for record in records if record["kind"] == kind]


def test_ssm_states_equal_the_float64_recurrence(records: dict[str, list[dict]]) -> None:
    ends = {
        name: [[end for _, end, _ in r["rows"]] for r in of_kind(rs, "ssm")] for name, rs in records.items()
    }
    assert ends == {"first": [[44]] * 2, "branch": [[30, 38]] * 2, "alone": [[30]] * 2, "resumed": [[19]] * 2}
    for record in (r for rs in records.values() for r in of_kind(rs, "ssm")):
        assert record["triton"]
        expected = ssm_states_reference(
            record["x"],
            record["B"],
            F.softplus(record["dt"].double() + record["dt_bias"].double()),
            record["A"],
            record["cu_seqlens"].tolist(),
            [seq for seq, _, _ in record["rows"]],
            [end for _, end, _ in record["rows"]],
            record["initial_states"],
        )
        error = (record["saved"] - expected).norm() / expected.norm()
        assert error < 1e-5


def test_conv_windows_are_copies_of_the_inputs(records: dict[str, list[dict]]) -> None:
    for record in (r for rs in records.values() for r in of_kind(rs, "conv")):
        assert record["triton"]
        starts = record["cu_seqlens"].tolist()
        width = record["saved"].shape[-1]
        for (seq, end, _), saved in zip(record["rows"], record["saved"], strict=True):
            before = (
                record["old"][seq]
                if record["has_initial_state"][seq]
                else torch.zeros_like(record["old"][seq])
            )
            stream = torch.cat([before, record["x"][:, starts[seq] : end]], dim=1)
            assert torch.equal(saved, stream[:, -width:])


def test_a_branch_state_equals_that_of_another_prefill(records: dict[str, list[dict]]) -> None:
    """The branch state saved in the middle of one prefill is the state that a prefill of the prefix saves as its end.

    To rounding: a matrix product of 39 rows differs from one of 31 in its last bits before our kernels see it.
    """
    for kind in ("ssm", "conv"):
        inside, ends = of_kind(records["branch"], kind), of_kind(records["alone"], kind)
        assert len(inside) == len(ends) == 2  # Mamba2 layers
        for middle, end in zip(inside, ends, strict=True):
            torch.testing.assert_close(middle["saved"][0], end["saved"][0], rtol=1e-5, atol=1e-5)
