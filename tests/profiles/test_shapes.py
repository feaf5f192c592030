"""Shapes from configs, against widths worked by hand."""

from marconi_ext.profiles.shapes import NEMOTRON_H_8B, SHAPES

BY_NAME = {shape.name: shape for shape in SHAPES}


def test_nemotron_by_hand() -> None:
    """52 layers, 24 M and 4 * in the pattern; 128 heads of 64, N = 128, 8 groups; 32 query and 8 KV heads of 128."""
    shape = NEMOTRON_H_8B
    assert (shape.kind, shape.recurrent_layers, shape.attention_layers) == ("mamba2", 24, 4)
    assert (shape.nheads, shape.headdim, shape.dstate, shape.ngroups) == (128, 64, 128, 8)
    assert (shape.chunk_size, shape.conv_dim, shape.conv_window) == (128, 10_240, 3)
    assert (shape.attention_width, shape.kv_width) == (4096, 2048)


def test_qwen3_next_by_hand() -> None:
    """48 layers, every fourth attention; 32 value and 16 key heads of 128; 16 query and 2 KV heads of 256."""
    shape = BY_NAME["Qwen3-Next-80B-A3B"]
    assert (shape.kind, shape.recurrent_layers, shape.attention_layers) == ("gdn", 36, 12)
    assert (shape.nheads, shape.headdim, shape.dstate, shape.ngroups) == (32, 128, 128, 16)
    assert (shape.chunk_size, shape.conv_dim, shape.conv_window) == (64, 8192, 3)
    assert (shape.attention_width, shape.kv_width) == (4096, 1024)


def test_falcon_and_granite_by_hand() -> None:
    falcon, granite = BY_NAME["Falcon-H1-7B"], BY_NAME["Granite-4.0-H-Small"]
    assert (falcon.recurrent_layers, falcon.attention_layers, falcon.conv_dim) == (44, 44, 3584)
    assert (falcon.nheads, falcon.headdim, falcon.dstate, falcon.chunk_size) == (24, 128, 256, 256)
    assert (granite.recurrent_layers, granite.attention_layers, granite.conv_dim) == (36, 4, 8448)
    assert (granite.nheads, granite.headdim, granite.dstate, granite.chunk_size) == (128, 64, 128, 256)
