"""Which settings of SGLang's are refused; the messages of a real start are tests/engine/test_refusals.py."""

from __future__ import annotations

import pytest
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, default_cuda_graph_config, with_phase
from sglang.srt.server_args import ServerArgs

from marconi_ext.config import ConfigError
from sglang_hooks.compat import check_arguments


class Resolved:
    """A hybrid model's resolved arguments: SGLang's defaults, with some set otherwise."""

    uses_mamba_radix_cache = True
    mamba_radix_cache_strategy = "extra_buffer"

    def __init__(self, **settings: object) -> None:
        self._defaults = ServerArgs(model_path="dummy")
        self.__dict__.update(settings)

    def __getattr__(self, name: str) -> object:
        return getattr(self._defaults, name)


def test_a_full_prefill_graph_is_refused_by_either_option() -> None:
    config = default_cuda_graph_config()
    check_arguments(Resolved(cuda_graph_config=config))
    full = with_phase(config, Phase.PREFILL, backend=Backend.FULL)
    for settings in ({"cuda_graph_config": full}, {"cuda_graph_backend_prefill": "full"}):
        with pytest.raises(ConfigError, match="inside a full prefill graph"):
            check_arguments(Resolved(**settings))


def test_shared_memory_is_served() -> None:
    check_arguments(Resolved(enable_unified_memory=True))


@pytest.mark.parametrize("other", ["enable_hierarchical_cache", "enable_session_radix_cache"])
def test_shared_memory_is_device_memory_alone(other: str) -> None:
    with pytest.raises(ConfigError, match="--enable-unified-memory in device memory alone"):
        check_arguments(Resolved(enable_unified_memory=True, **{other: True}))
    check_arguments(Resolved(**{other: True}))


def test_shared_memory_has_one_order_of_eviction() -> None:
    with pytest.raises(ConfigError, match="drop --enable-unified-memory or --radix-eviction-policy"):
        check_arguments(Resolved(enable_unified_memory=True, radix_eviction_policy="priority"))
    check_arguments(Resolved(radix_eviction_policy="priority"))


def test_decode_servers_are_told_of_wrong_retractions(caplog: pytest.LogCaptureFixture) -> None:
    """SGLang's own fault (bench/soak_pair.py): with overlap a retracted request resumes from a state too far on."""
    decode = {"disaggregation_mode": "decode", "disable_radix_cache": True}
    safe = {"disable_overlap_schedule": True}, {"disaggregation_decode_retraction_backup": "none"}
    for settings in safe:
        check_arguments(Resolved(**decode, **settings))
    assert "retracted" not in caplog.text
    check_arguments(Resolved(**decode))
    assert "--disaggregation-decode-retraction-backup none" in caplog.text
