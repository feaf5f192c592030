"""Which backends and models a family serves, and what it refuses."""

from __future__ import annotations

import importlib
import sys

import pytest
from made_package import install
from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend
from sglang.srt.layers.attention.linear.gdn_backend import GDNAttnBackend
from sglang.srt.layers.attention.linear.kda_backend import KDAAttnBackend

from marconi_ext.errors import BadInputError
from sglang_hooks.hooks import check_signatures
from sglang_hooks.recurrence import registry
from sglang_hooks.recurrence.gdn import GDN
from sglang_hooks.recurrence.interface import Recurrence
from sglang_hooks.recurrence.mamba2 import MAMBA2
from sglang_hooks.recurrence.options import REPLAYED_DECODE
from sglang_hooks.recurrence.registry import family_of, hooks


class Subclass(GDNAttnBackend):
    """As NPU and XPU have them."""


@pytest.mark.parametrize(
    ("kind", "family"),
    [(Mamba2AttnBackend, MAMBA2), (GDNAttnBackend, GDN), (Subclass, None), (KDAAttnBackend, None)],
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
    assert GDN.why_refused(architecture, None)


def test_replayed_decode_is_refused() -> None:
    applies, _ = REPLAYED_DECODE
    assert applies(type("Arguments", (), {"enable_linear_replayssm": True}))
    assert not applies(type("Arguments", (), {"enable_linear_replayssm": False}))


def test_hooks_fit_the_installed_release() -> None:
    assert check_signatures(hooks()) == []


OTHERS = """
from sglang_hooks.recurrence.interface import Recurrence

class Backend: pass

THEIRS = Recurrence("theirs", "", "", (f"{__name__}.Backend",), (), (), saver=lambda context: None)
"""


@pytest.fixture
def install_family(tmp_path, monkeypatch):
    def install_family(code: str) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        install(tmp_path, "their_family", "[marconi.recurrences]\ntheirs = their_family:THEIRS\n", code)
        registry.families.cache_clear()

    yield install_family
    sys.modules.pop("their_family", None)
    registry.families.cache_clear()


def test_a_family_of_another_package_serves_its_backend(install_family) -> None:
    install_family(OTHERS)
    theirs = importlib.import_module("their_family")
    assert family_of(theirs.Backend()) is theirs.THEIRS
    assert family_of(object.__new__(GDNAttnBackend)) is GDN


def test_a_family_that_can_not_be_imported_stops_the_start(install_family) -> None:
    install_family("import no_such_module")
    with pytest.raises(BadInputError, match="no_such_module"):
        hooks()
