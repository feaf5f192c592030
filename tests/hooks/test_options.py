"""Every option of the installed SGLang is decided, refusals refuse, and the page says what the table says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sglang.srt.server_args import ServerArgs
from test_compat import Resolved

from marconi_ext.config import ConfigError
from sglang_hooks.compat import check_arguments
from sglang_hooks.options import OPTIONS, WITHOUT_INFLUENCE, Decision, Option, page

REFUSED = [option for option in OPTIONS if option.decision is Decision.REFUSED]


def undecided(fields: tuple[str, ...]) -> set[str]:
    decided = {option.name for option in OPTIONS} | {
        name for group in WITHOUT_INFLUENCE.values() for name in group
    }
    return set(fields) ^ decided


def test_every_option_is_decided_once() -> None:
    assert undecided(ServerArgs.__struct_fields__) == set()
    names = [option.name for option in OPTIONS] + [
        name for group in WITHOUT_INFLUENCE.values() for name in group
    ]
    assert len(names) == len(set(names))


def test_an_option_of_another_release_shows_up() -> None:
    assert undecided((*ServerArgs.__struct_fields__, "mamba_brand_new")) == {"mamba_brand_new"}


@pytest.mark.parametrize("option", REFUSED, ids=lambda option: option.name)
def test_what_is_refused_is_refused_by_name(option: Option) -> None:
    check_arguments(Resolved())
    with pytest.raises(ConfigError) as refused:
        check_arguments(Resolved(**{option.name: option.refused_value}))
    words = {"attn_cp_size": "--attn-cp-size", "radix_cache_backend": "--radix-cache-backend"}
    assert words.get(option.name, option.flag) in str(refused.value)


def test_the_path_cap_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_arguments(Resolved())
        assert not caplog.records
        check_arguments(Resolved(mamba_max_states_per_path=2))
    assert "--mamba-max-states-per-path 2 has no effect" in caplog.text


def test_the_page_is_the_tables() -> None:
    assert (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8") == page()
