"""Policies by name."""

from dataclasses import replace

import pytest

from marconi_ext.config import MarconiConfig
from marconi_ext.errors import BadInputError
from marconi_ext.policies.registry import canonical_name, parse_policy
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.sweep import CellKey


def test_names() -> None:
    assert parse_policy("gittins").admission == "fork-predictor"
    assert parse_policy("sglang+").eviction == "lru-leaf"
    parsed = parse_policy("every-block:64+flop-aware:0.5")
    assert (parsed.admission_parameter, parsed.eviction_parameter) == (64, 0.5)
    for bad in (
        "",
        "gittins:1",
        "flop-aware",
        "exact:3+lru",
        "lru+gittins",
        "artifact-lru:1",
        "flop-aware:-1",
    ):
        with pytest.raises(BadInputError, match="--policy"):
            parse_policy(bad)


def test_earlier_names_mean_the_same() -> None:
    for old, new in (("ours", "gittins"), ("learned+git", "fork-predictor+gittins-basic")):
        assert replace(parse_policy(old), text="") == replace(parse_policy(new), text="")
        assert canonical_name(old) == canonical_name(new) == new
    written = {"capacity_bytes": None, "slots": 4, "tokens": None}
    written |= {"trace": "t", "seed": 0, "policy": "ours", "model": "m"}
    assert CellKey("t", 0, "gittins", Capacity(slots=4), "m").matches(written)
    assert MarconiConfig(eviction="learned+git").policy == "learned+git"


def test_simple_rules_save_where_the_default_policy_saves() -> None:
    names = ("superseded-seglen", "superseded-gdsf", "superseded-hyperbolic", "forty-lines")
    assert {parse_policy(name).admission for name in names} == {parse_policy("gittins").admission}
