"""Short convolutions get the extra buffer that SGLang keeps from them, where ours can do without its tracking."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from marconi_ext.config import ConfigError, MarconiConfig
from sglang_hooks.resolution import _check_page, _extra_buffer

LFM2, ZAYA, MOBIUS = "Lfm2ForCausalLM", "ZayaForCausalLM", "InternS2MobiusForConditionalGeneration"


def answer(
    architecture: str,
    *,
    stock: bool = False,
    enabled: bool = True,
    page_size: int | None = None,
    draft: str | None = None,
) -> bool:
    settings = {"_marconi_config": MarconiConfig().model_dump_json()} if enabled else {}
    view = SimpleNamespace(page_size=page_size, speculative_algorithm=draft, **settings)
    return _extra_buffer(lambda view, config: stock, view, SimpleNamespace(architectures=[architecture]))


def test_the_extra_buffer_is_given_where_nothing_has_to_be_tracked() -> None:
    assert answer(LFM2) and answer(ZAYA, page_size=1)
    assert not answer(LFM2, page_size=16)
    assert not answer(LFM2, draft="NGRAM")
    assert not answer(MOBIUS)
    assert answer(MOBIUS, stock=True)


def test_stock_servers_keep_their_answer() -> None:
    assert not answer(LFM2, enabled=False)
    assert answer("Qwen3NextForCausalLM", stock=True, enabled=False)


def test_a_page_that_a_backend_chose_is_refused() -> None:
    with pytest.raises(ConfigError, match="page size 1 alone"):
        _check_page(LFM2, 64)
    _check_page(LFM2, None)
    _check_page("Qwen3NextForCausalLM", 64)
