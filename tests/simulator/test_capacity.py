"""Sizes of caches as they are written on the command line."""

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.simulator.capacity import Capacity, parse_capacities


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("40GB,512MiB", [Capacity(bytes=40 * 10**9), Capacity(bytes=512 * 2**20)]),
        ("slots=16", [Capacity(slots=16)]),
        ("slots=16,slots=32", [Capacity(slots=16), Capacity(slots=32)]),
        ("slots=16,tokens=2M", [Capacity(slots=16, tokens=2 * 10**6)]),
        ("slots=16;tokens=1.5k", [Capacity(slots=16), Capacity(tokens=1500)]),
        ("slots=16,tokens=inf", [Capacity(slots=16)]),
    ],
)
def test_what_is_written_is_read(text: str, found: list[Capacity]) -> None:
    assert parse_capacities(text) == found


@pytest.mark.parametrize("text", ["", ";", "fortyGB", "states=4", "slots=", "slots=-1"])
def test_what_is_no_size_names_the_flag(text: str) -> None:
    with pytest.raises(BadInputError, match="--capacity"):
        parse_capacities(text)


def test_labels_say_it_back() -> None:
    assert [Capacity(bytes=4 * 10**10).label, Capacity(bytes=900).label] == ["40GB", "900 bytes"]
    assert [Capacity(slots=8, tokens=100).label, Capacity().label] == ["slots=8,tokens=100", "unlimited"]
