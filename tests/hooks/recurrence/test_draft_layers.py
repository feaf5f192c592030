"""A draft's recurrent layers run while the target's plan is armed, and nothing is saved from them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hook_functions import hooked

from sglang_hooks.recurrence import forward as forward_pass
from sglang_hooks.recurrence import mamba2, pieces


class Saver(mamba2.Mamba2Saver):
    """Notes what reaches it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def bind(self, backend: Any) -> None:
        self.seen.append("bind")

    def run_layer(self, *args: Any, **kwargs: Any) -> str:
        self.seen.append("layer")
        return "saved"


class Pieces(pieces.PieceSaver):
    """Likewise."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def metadata_made(self, forward_batch: Any) -> None:
        self.seen.append("bind")

    def run_layer(self, *args: Any, **kwargs: Any) -> str:
        self.seen.append("layer")
        return "saved"


@pytest.mark.parametrize("own", [True, False], ids=["target", "draft"])
def test_only_the_targets_layers_are_saved(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = hooked(mamba2.MAMBA2.hooks, "init_forward_metadata")
    forward = hooked(mamba2.MAMBA2.hooks, "Mamba2AttnBackend.forward")
    planned = hooked(pieces.PIECE_HOOKS, "MambaAttnBackendBase._forward_metadata")
    extend = hooked(pieces.PIECE_HOOKS, "HybridLinearAttnBackend.forward_extend")
    target = SimpleNamespace()
    backend = target if own else SimpleNamespace()
    hybrid = SimpleNamespace(linear_attn_backend=backend, _is_full_attn=lambda layer, layer_id: False)
    for saver, bind, layer in (
        (Saver(), metadata, lambda: forward(plain, backend)),
        (Pieces(), planned, lambda: extend(plain, hybrid, None, None)),
    ):
        runs = SimpleNamespace(backend=target, saver=saver)
        monkeypatch.setattr(forward_pass, "running", lambda _kind, runs=runs: runs)
        bind(None, backend, None)
        assert layer() == ("saved" if own else "plain")
        assert saver.seen == (["bind", "layer"] if own else [])


def plain(*_args: Any, **_kwargs: Any) -> str:
    return "plain"
