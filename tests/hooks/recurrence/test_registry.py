"""Which backends and models a family serves, and what it refuses."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_package import install
from page_blocks import blocks
from sglang.srt.arg_groups.overrides import _MAMBA_EXTRA_BUFFER_ARCHS, _MAMBA_RADIX_CACHE_ARCHS
from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend
from sglang.srt.layers.attention.linear.gdn_backend import GDNAttnBackend
from sglang.srt.layers.attention.linear.kda_backend import KDAAttnBackend

from marconi_ext.errors import BadInputError
from sglang_hooks.hooks import check_signatures
from sglang_hooks.recurrence import registry
from sglang_hooks.recurrence.gdn import GDN
from sglang_hooks.recurrence.interface import Recurrence, SaverContext
from sglang_hooks.recurrence.kda import KDA
from sglang_hooks.recurrence.mamba2 import MAMBA2
from sglang_hooks.recurrence.pieces import PIECE_HOOKS, PieceSaver
from sglang_hooks.recurrence.registry import FAMILIES, family_of, hooks, why_stock
from sglang_hooks.recurrence.table import renewed


class Subclass(GDNAttnBackend):
    """As NPU and XPU have them."""


@pytest.mark.parametrize(
    ("kind", "family"),
    [(Mamba2AttnBackend, MAMBA2), (GDNAttnBackend, GDN), (Subclass, None), (KDAAttnBackend, KDA)],
)
def test_a_backend_is_served_by_its_exact_class(kind: type, family: Recurrence | None) -> None:
    assert family_of(object.__new__(kind)) is family


def test_no_backend_has_no_family() -> None:
    assert family_of(None) is None


@pytest.mark.parametrize(
    "architecture",
    ["JetNemotronForCausalLM", "JetVLMForConditionalGeneration", "Qwen4ExpForConditionalGeneration"],
)
def test_models_whose_states_would_be_wrong_are_refused(architecture: str) -> None:
    assert why_stock(architecture)


def test_a_model_that_is_in_no_table_is_served_as_stock() -> None:
    assert "isn't in the table" in why_stock("TomorrowsForCausalLM")
    assert why_stock("Qwen3NextForCausalLM") is None


def test_no_model_is_in_two_tables() -> None:
    names = [name for family in FAMILIES for name in (*family.architectures, *family.refused)]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert set(family.tested) <= set(family.architectures)
        assert set(family.untracked) <= set(family.architectures)
        assert set(family.unverified) <= set(family.architectures)


def test_every_model_is_one_of_sglangs() -> None:
    """Or, for a family with a prefix cache of its own, listed by SGLang as one."""
    known = set(_MAMBA_RADIX_CACHE_ARCHS) | set(_MAMBA_EXTRA_BUFFER_ARCHS)
    served = {name for family in FAMILIES for name in family.architectures}
    assert served - known <= {"GraniteMoeHybridForCausalLM"}
    refused = {name for family in FAMILIES for name in family.refused}
    assert known - served - refused == {"InklingForConditionalGenerationMTP"}


def test_the_page_has_the_table_of_the_code() -> None:
    page = Path(__file__).parents[3] / "docs" / "models.md"
    assert renewed(page.read_text(encoding="utf-8")) == page.read_text(encoding="utf-8")


def test_hooks_fit_the_installed_release() -> None:
    assert check_signatures(hooks()) == []


@pytest.fixture
def install_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def install_family(code: str) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        (written,) = blocks("its pyproject.toml")
        project = tomllib.loads(written)["project"]["entry-points"]
        ((name, value),) = project["marconi.recurrences"].items()
        install(tmp_path, "my_recurrence", f"[marconi.recurrences]\n{name} = {value}\n", code)
        registry.families.cache_clear()

    yield install_family
    sys.modules.pop("my_recurrence", None)
    registry.families.cache_clear()


def test_the_family_of_the_page_serves_its_backend(install_family: Callable[[str], None]) -> None:
    assert why_stock("HouseForCausalLM")
    install_family(*blocks("my_recurrence.py"))
    theirs = importlib.import_module("my_recurrence")
    assert family_of(theirs.HouseBackend()) is theirs.HOUSE
    assert family_of(object.__new__(GDNAttnBackend)) is GDN
    assert why_stock("HouseForCausalLM") is None and set(hooks()) >= set(PIECE_HOOKS)
    saver = theirs.HOUSE.saver(SaverContext(2, lambda name, n: None))
    assert isinstance(saver, PieceSaver)
    assert "of 2 recurrent layers" in saver.missed(), "a state that no layer saved isn't published"


def test_a_family_that_can_not_be_imported_stops_the_start(install_family: Callable[[str], None]) -> None:
    install_family("import no_such_module")
    with pytest.raises(BadInputError, match="no_such_module"):
        hooks()
