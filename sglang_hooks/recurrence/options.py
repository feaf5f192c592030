"""SGLang options that go against saving states in pieces."""

from __future__ import annotations

from typing import Any


def _replayed_decode(arguments: Any) -> bool:
    return bool(getattr(arguments, "enable_linear_replayssm", False))


def _whole_prefill_graphs(_arguments: Any) -> bool:
    from sglang.srt.model_executor.cuda_graph_config import (
        Backend,
        Phase,
        check_cuda_graph_backend,
    )

    return check_cuda_graph_backend(Phase.PREFILL, Backend.FULL)


REPLAYED_DECODE = (
    _replayed_decode,
    "the running slot lags behind its tokens with --enable-linear-replayssm: drop it",
)
WHOLE_PREFILL_GRAPHS = (
    _whole_prefill_graphs,
    "no Python runs at a layer inside a full prefill graph: drop --cuda-graph-backend-prefill full",
)
