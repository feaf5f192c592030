"""SGLang options that go against exact states; `compat.py` refuses them at start, a family where it saves in pieces."""

from __future__ import annotations

from typing import Any


def _replayed_decode(arguments: Any) -> bool:
    names = ("enable_linear_replayssm", "enable_linear_replayssm_spec")
    return any(getattr(arguments, name, False) for name in names)


def _whole_prefill_graphs(_arguments: Any) -> bool:
    from sglang.srt.model_executor.cuda_graph_config import (
        Backend,
        Phase,
        check_cuda_graph_backend,
    )

    return check_cuda_graph_backend(Phase.PREFILL, Backend.FULL)


REPLAYED_DECODE = (
    _replayed_decode,
    "needs states that are up to date: drop --enable-linear-replayssm and --enable-linear-replayssm-spec",
)
WHOLE_PREFILL_GRAPHS = (
    _whole_prefill_graphs,
    "no Python runs at a layer inside a full prefill graph: drop --cuda-graph-backend-prefill full",
)
