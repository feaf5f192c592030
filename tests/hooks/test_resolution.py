"""What is changed while SGLang resolves its arguments, and what is left as it is."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hook_functions import hooked
from sglang.srt.arg_groups.overrides import mamba_extra_buffer_lazy_of, resolving_view
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

from marconi_ext.config import ConfigError, MarconiConfig
from marconi_ext.models.toy_model import ToyModel, write_model
from sglang_hooks.resolution import RESOLUTION_HOOKS, choose_extra_buffer, refuse_for, track_nothing_lazily

LFM2, ZAYA, MOBIUS = "Lfm2ForCausalLM", "ZayaForCausalLM", "InternS2MobiusForConditionalGeneration"


def answer(
    architecture: str,
    *,
    stock: bool = False,
    enabled: bool = True,
) -> bool:
    settings = {"_marconi_config": MarconiConfig().model_dump_json()} if enabled else {}
    given = hooked(RESOLUTION_HOOKS, "supports_mamba_cache_extra_buffer")
    view = SimpleNamespace(**settings)
    return given(lambda view, config: stock, view, SimpleNamespace(architectures=[architecture]))


def test_no_tracking_means_an_extra_buffer() -> None:
    assert answer(LFM2) and answer(ZAYA)
    assert not answer(MOBIUS)
    assert answer(MOBIUS, stock=True)


def test_stock_servers_keep_their_answer() -> None:
    assert not answer(LFM2, enabled=False)
    assert answer("Qwen3NextForCausalLM", stock=True, enabled=False)


NO_STATES = "SGLang 0.5.23 keeps no states of ZayaForCausalLM during a verify: drop --speculative-algorithm"
CHAINS = "verifies the drafts of short convolutions as a chain, and answers wrongly where they branch"


@pytest.mark.parametrize(
    ("architecture", "algorithm", "topk", "message"),
    [
        (ZAYA, "STANDALONE", 1, NO_STATES),
        (ZAYA, "NGRAM", 10, NO_STATES),
        (LFM2, "NGRAM", 10, CHAINS),
        ("Lfm2MoeForCausalLM", "STANDALONE", 2, CHAINS),
        ("BailingMoeV2_5ForCausalLM", "NGRAM", 1, "the drafts of lightning attention as a chain"),
        ("KimiK3ForConditionalGeneration", "DSPARK", 1, "KDA was not held against the cache off with DSPARK"),
    ],
)
def test_drafts_without_states_are_refused_by_model(
    architecture: str, algorithm: str, topk: int, message: str
) -> None:
    refuse_for(architecture, SimpleNamespace(speculative_algorithm=None))
    with pytest.raises(ConfigError, match=f"--enable-marconi with {architecture}: .*{message}"):
        refuse_for(
            architecture, SimpleNamespace(speculative_algorithm=algorithm, speculative_eagle_topk=topk)
        )


@pytest.mark.parametrize(
    ("architecture", "algorithm", "topk"),
    [
        (LFM2, "STANDALONE", 1),
        ("BailingMoeV2_5ForCausalLM", "EAGLE", 1),
        ("KimiLinearForCausalLM", "NGRAM", 10),
        ("Qwen3NextForCausalLM", "EAGLE", 2),
    ],
)
def test_drafts_whose_states_are_kept_pass(architecture: str, algorithm: str, topk: int) -> None:
    refuse_for(architecture, SimpleNamespace(speculative_algorithm=algorithm, speculative_eagle_topk=topk))


def test_lazy_tracking_is_taken_as_what_it_saves_on() -> None:
    arguments = ServerArgs(model_path="dummy", mamba_radix_cache_strategy="extra_buffer_lazy")
    track_nothing_lazily(arguments, resolving_view(arguments))
    assert resolving_view(arguments).mamba_radix_cache_strategy == "extra_buffer"
    assert not mamba_extra_buffer_lazy_of(resolving_view(arguments))


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"disable_overlap_schedule": True}, "extra_buffer"),
        ({"pp_size": 2}, "extra_buffer"),
        ({"mamba_radix_cache_strategy": "no_buffer"}, "no_buffer"),
        ({"disable_radix_cache": True}, "auto"),
        ({"disaggregation_mode": "decode"}, "auto"),
    ],
)
def test_extra_buffer_where_nobody_chose(tmp_path: Path, given: dict[str, Any], chosen: str) -> None:
    model = write_model(tmp_path / "model", ToyModel())
    arguments = ServerArgs(model_path=str(model), **given)
    choose_extra_buffer(arguments, resolving_view(arguments))
    assert resolving_view(arguments).mamba_radix_cache_strategy == chosen


def test_a_model_that_is_served_as_stock_keeps_sglangs_choice(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", ToyModel())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": [MOBIUS]}))
    arguments = ServerArgs(model_path=str(model), disable_overlap_schedule=True)
    choose_extra_buffer(arguments, resolving_view(arguments))
    assert resolving_view(arguments).mamba_radix_cache_strategy == "auto"


def test_two_adapters_share_no_keys() -> None:
    keys = {
        Req("id", "", array("q", [1]), SamplingParams(), lora_id=name).extra_key for name in ("a", "b", None)
    }
    assert len(keys) == 3
