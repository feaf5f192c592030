"""Profiles: each formula by hand, named models against published sizes, and SGLang's own allocation."""

import json

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.profiles import load_profile, paper, paper_7b, profile_from_config, profile_names
from marconi_ext.profiles.layers import gdn, gqa, kda, mamba1, mamba2, mla, mlp, moe


def test_gqa_by_hand() -> None:
    """Nemotron-H-8B: 32 query and 8 KV heads of 128 at width 4096. Projections 2·4096·(2·4096 + 2·1024), and
    causal scores and values: 4·4096 FLOPs a pair, L(L+1)/2 pairs."""
    cost = gqa(4096, 32, 8, 128)
    assert cost.linear_flops == 2 * 4096 * (2 * 4096 + 2 * 1024) + 2 * 4096
    assert cost.quadratic_flops == 2 * 4096
    assert cost.kv_bytes_per_token == 2 * 8 * 128 * 2 == 4096
    assert gqa(4096, 32, 8, 128, tp=16).kv_bytes_per_token == 2 * 1 * 128 * 2  # fewer heads than ranks


def test_mla_by_hand() -> None:
    """Kimi-Linear: the cache holds 512 + 64 numbers a token."""
    cost = mla(2304, 32, 512, 128, 64, 128)
    assert cost.kv_bytes_per_token == 2 * (512 + 64)
    projections = 2304 * 32 * 192 + 2304 * 576 + 512 * 32 * 256 + 32 * 128 * 2304
    assert cost.linear_flops == 2 * projections + 32 * (192 + 128)


def test_feed_forward_by_hand() -> None:
    assert mlp(4096, 21504, gated=False).linear_flops == 4 * 4096 * 21504
    assert mlp(4096, 14336, gated=True).linear_flops == 6 * 4096 * 14336
    granite = moe(4096, 768, 72, 10, shared_intermediate=1536)
    assert granite.linear_flops == 2 * 4096 * 72 + 6 * 4096 * (7680 + 1536)


def test_mamba2_by_hand() -> None:
    """Nemotron-H-8B: 128 heads of 64, N = 128, 8 groups: SSM 128·64·128 fp32, conv (8192 + 2048)·3 bf16."""
    cost = mamba2(4096, 128, 64, 128, 8, 4)
    assert cost.state_bytes == 128 * 64 * 128 * 4 + 10_240 * 3 * 2 == 4_255_744
    inner, conv = 8192, 10_240
    assert cost.linear_flops == 2 * 4096 * (8192 + conv + 128) + 8 * conv + 6 * inner * 128 + 2 * inner * 4096
    assert mamba2(4096, 128, 64, 128, 8, 4, ssm_dtype_bytes=2).state_bytes == 128 * 64 * 128 * 2 + 61_440
    assert mamba2(4096, 128, 64, 128, 8, 4, tp=2).state_bytes * 2 == cost.state_bytes


def test_mamba1_by_hand() -> None:
    """Jamba 1.5 Mini: d_inner 8192, N = 16, rank 256."""
    cost = mamba1(4096, 8192, 16, 256, 4)
    assert cost.state_bytes == 8192 * 16 * 4 + 8192 * 3 * 2
    expected = (
        2 * 4096 * 16_384 + 8 * 8192 + 2 * 8192 * 288 + 2 * 256 * 8192 + 9 * 8192 * 16 + 2 * 8192 * 4096
    )
    assert cost.linear_flops == expected


def test_delta_rules_by_hand() -> None:
    """Qwen3-Next: 32 value heads of 128×128, conv over 2·2048 + 4096. Kimi-Linear: 32 heads of 128."""
    assert gdn(2048, 16, 32, 128, 128, 4).state_bytes == 32 * 128 * 128 * 4 + 8192 * 3 * 2
    assert kda(2304, 32, 128, 4).state_bytes == 32 * 128 * 128 * 4 + 3 * 4096 * 3 * 2


@pytest.mark.parametrize(
    ("name", "active_billions"),
    [
        ("nemotron-h-8b", 8.1 - 1.07),
        ("nemotron-h-56b", 56.6 - 2.1),
        ("falcon-h1-7b", 7.6 - 0.8),
        ("granite-4-h-small", 9.0 - 0.4),
        ("bamba-9b", 9.8 - 1.05),
        ("jamba-1.5-mini", 12.0 - 0.5),
        ("qwen3-next-80b-a3b", 3.9 - 0.6),
        ("qwen3.5-27b", 27.0 - 2.5),
        ("qwen3.6-35b-a3b", 3.0 - 0.5),
        ("kimi-linear-48b-a3b", 3.0 - 0.4),
        ("kimi-k3", 104.0 - 1.2),
        ("ling-2.6-flash", 7.4 - 1.3),
        ("lfm2-8b-a1b", 1.5 - 0.13),
    ],
)
def test_flops_are_twice_the_active_weights(name: str, active_billions: float) -> None:
    """Published (active) parameters less embeddings and head, within 8 %; scans and convs are extra."""
    assert load_profile(name).linear_flops / 2e9 == pytest.approx(active_billions, rel=0.08)


def test_every_bundled_profile_loads() -> None:
    assert len(profile_names()) == 14
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name or name == "paper-7b"
        assert profile.state_bytes > 1e5 and profile.kv_bytes_per_token > 1e3


def test_paper_profile_agrees_with_the_printed_formulas() -> None:
    profile = paper_7b()
    for tokens in (1, 1000, 30_000):
        assert profile.prefix_flops(tokens) == paper.prefix_flops(tokens)


def test_dtype_and_shards() -> None:
    full = load_profile("nemotron-h-8b")
    assert load_profile("nemotron-h-8b", ssm_dtype="bfloat16").state_bytes == 24 * (
        2 * 128 * 64 * 128 + 61_440
    )
    assert load_profile("nemotron-h-8b", tp=2).state_bytes * 2 == full.state_bytes
    assert load_profile("nemotron-h-8b", kv_dtype="fp8").kv_bytes_per_token * 2 == full.kv_bytes_per_token


def test_errors_name_the_flag(tmp_path) -> None:
    with pytest.raises(BadInputError, match="--model: no profile"):
        load_profile("no-such-model")
    with pytest.raises(BadInputError, match="model_type 'llama'"):
        profile_from_config({"model_type": "llama"})
    with pytest.raises(BadInputError, match=r"config\.json lacks '"):
        profile_from_config({"model_type": "bamba"})
    with pytest.raises(BadInputError, match=r"no readable config\.json there"):
        load_profile(str(tmp_path))
    for text, said in (("{", "not JSON"), ("[1]", "not an object"), ('{"text_config": 3}', "not an object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadInputError, match=said):
            load_profile(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match="not JSON"):
        load_profile(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nemotron_h"}))
    with pytest.raises(BadInputError, match="lacks"):
        load_profile(str(tmp_path))


@pytest.mark.sglang
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_state_bytes_are_what_sglang_allocates(tp: int) -> None:
    """Nemotron-H-8B's shapes through SGLang's own Mamba2StateShape and its bytes per request."""
    import sglang.srt.configs.mamba_utils as mamba_utils

    shape = mamba_utils.Mamba2StateShape.create(
        tp_world_size=tp,
        intermediate_size=128 * 64,
        n_groups=8,
        num_heads=128,
        head_dim=64,
        state_size=128,
        conv_kernel=4,
    )
    params = mamba_utils.Mamba2CacheParams(shape=shape, layers=list(range(24)))
    assert params.dtype.temporal.itemsize == 4 and params.dtype.conv.itemsize == 2
    assert load_profile("nemotron-h-8b", tp=tp).state_bytes == params.mamba_cache_per_req


@pytest.mark.sglang
@pytest.mark.parametrize("tp", [1, 2])
def test_other_families_bytes_are_what_sglang_allocates(tp: int) -> None:
    import sglang.srt.configs.mamba_utils as utils

    kimi = utils.KimiLinearStateShape.create(tp_world_size=tp, num_heads=96, head_dim=128, conv_kernel_size=4)
    lightning = utils.Mamba2StateShape.create(
        tp_world_size=tp,
        intermediate_size=0,
        n_groups=0,
        num_heads=32,
        head_dim=128,
        state_size=128,
        conv_kernel=1,
    )
    short_conv = utils.Mamba2StateShape.create(
        tp_world_size=tp,
        intermediate_size=2048,
        n_groups=1,
        num_heads=tp,
        head_dim=2048,
        state_size=0,
        conv_kernel=3,
    )
    for name, params in {
        "kimi-k3": utils.KimiLinearCacheParams(shape=kimi, layers=list(range(69))),
        "ling-2.6-flash": utils.Mamba2CacheParams(shape=lightning, layers=list(range(28))),
        "lfm2-8b-a1b": utils.Mamba2CacheParams(shape=short_conv, layers=list(range(18))),
    }.items():
        assert load_profile(name, tp=tp).state_bytes == params.mamba_cache_per_req, name
