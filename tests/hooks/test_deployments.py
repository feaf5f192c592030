"""The page of deployments is the table that refuses, and each row refuses what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_compat import Resolved

from marconi_ext.config import ConfigError
from marconi_ext.models.drafts import write_standalone_draft
from marconi_ext.models.toy_model import ToyModel, write_model
from sglang_hooks.compat import check_arguments
from sglang_hooks.deployments import DEPLOYMENTS, PROVEN_ALGORITHMS, page


def test_the_page_is_the_table() -> None:
    assert (Path(__file__).parents[2] / "docs" / "deployments.md").read_text(encoding="utf-8") == page()


def test_what_is_refused_says_why() -> None:
    assert all(row.conflicts for row in DEPLOYMENTS if not row.supported)


@pytest.mark.parametrize("algorithm", PROVEN_ALGORITHMS)
def test_proven_speculation_starts(algorithm: str, tmp_path: Path) -> None:
    draft = write_standalone_draft(tmp_path, 1_500)
    check_arguments(Resolved(speculative_algorithm=algorithm, speculative_draft_model_path=str(draft)))


def test_a_recurrent_draft_is_refused(tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", ToyModel(vocab=1_500))
    with pytest.raises(ConfigError, match="a draft model with recurrent layers"):
        check_arguments(Resolved(speculative_algorithm="STANDALONE", speculative_draft_model_path=str(draft)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"page_size": 16}, "NGRAM with --page-size 1 alone"),
        (
            {"page_size": 8, "speculative_num_draft_tokens": 5},
            "or twice --speculative-num-draft-tokens at least",
        ),
        ({"enable_unified_memory": True}, "--speculative-algorithm with --enable-unified-memory"),
        ({"enable_mixed_chunk": True}, "--speculative-algorithm with --enable-mixed-chunk"),
        ({"speculative_ngram_max_bfs_breadth": 1}, "needs --speculative-ngram-max-bfs-breadth 2 or more"),
    ],
)
def test_what_speculation_was_not_proven_with_is_refused(setting: dict[str, object], message: str) -> None:
    check_arguments(Resolved(**setting))
    with pytest.raises(ConfigError, match=message):
        check_arguments(Resolved(speculative_algorithm=PROVEN_ALGORITHMS[0], **setting))


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        (
            "FROZEN_KV_MTP",
            "supports --speculative-algorithm NGRAM, EAGLE, EAGLE3, STANDALONE, DFLASH, DSPARK alone",
        ),
        ("UNO", "supports --speculative-algorithm NGRAM"),
    ],
)
def test_unproven_speculation_is_refused_with_its_reason(algorithm: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_arguments(Resolved(speculative_algorithm=algorithm))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"pp_size": 2, "speculative_algorithm": "NGRAM"}, "--speculative-algorithm with --pp-size above 1"),
        ({"attn_dp_size": 2, "speculative_algorithm": "DFLASH"}, "DFLASH and DSPARK with data-parallel"),
        (
            {"enable_dp_attention": True, "speculative_algorithm": "DSPARK"},
            "DFLASH and DSPARK with data-parallel",
        ),
        ({"pp_size": 2, "enable_hierarchical_cache": True}, "--pp-size above 1 without"),
        (
            {"disaggregation_mode": "prefill", "speculative_algorithm": "NGRAM"},
            "--speculative-algorithm with --disagg",
        ),
        ({"disaggregation_mode": "prefill", "pp_size": 2}, "--pp-size above 1 with --disaggregation-mode"),
        ({"disaggregation_mode": "prefill", "enable_pd_role_switch": True}, "changes its role"),
    ],
)
def test_what_was_not_proven_together_is_refused(settings: dict[str, object], reason: str) -> None:
    check_arguments(Resolved(**dict(list(settings.items())[:1])))
    with pytest.raises(ConfigError, match=reason):
        check_arguments(Resolved(**settings))


@pytest.mark.parametrize("mode", ["compact", "cap-accept"])
def test_ragged_verifies_are_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_RAGGED_VERIFY_MODE", mode)
    check_arguments(Resolved(speculative_algorithm="DFLASH"))
    with pytest.raises(ConfigError, match="DSPARK with SGLANG_RAGGED_VERIFY_MODE=static alone"):
        check_arguments(Resolved(speculative_algorithm="DSPARK"))


def test_a_decode_server_without_a_cache_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    decode = {"disaggregation_mode": "decode", "mamba_radix_cache_strategy": "no_buffer"}
    check_arguments(Resolved(**decode, disable_radix_cache=True))
    assert "--enable-marconi does nothing here" in caplog.text
    with pytest.raises(ConfigError, match="extra_buffer"):
        check_arguments(Resolved(**decode, disaggregation_decode_enable_radix_cache=True))
    with pytest.raises(ConfigError, match="needs the radix cache"):
        check_arguments(Resolved(disaggregation_mode="prefill", disable_radix_cache=True))
