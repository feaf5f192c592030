"""Arms by name and option: what they add to a server's flags, and what they refuse."""

import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.servers.arms import choose_arms


def flags(text: str) -> list[str]:
    (arm,) = choose_arms(text, 64)
    assert arm.name == text
    return list(arm.flags)


def test_options_become_flags() -> None:
    assert flags("off") == ["--disable-radix-cache"]
    assert flags("stock:max-states=3") == ["--mamba-max-states-per-path", "3"]
    assert flags("stock:track-interval=64:slots=48") == [
        *("--mamba-track-interval", "64", "--max-mamba-cache-size", "48")
    ]
    assert flags("marconi:checkpoints=branch+prompt-end:tokens=9000") == [
        *("--enable-marconi", "--marconi-checkpoints", "branch,prompt-end", "--max-total-tokens", "9000")
    ]
    assert flags("stock:flag.chunked-prefill-size=256:flag.disable-overlap-schedule") == [
        *("--chunked-prefill-size", "256", "--disable-overlap-schedule")
    ]
    assert flags("marconi:eviction=flop-aware:0.5:slots=48")[1:] == [
        *("--marconi-eviction", "flop-aware:0.5", "--max-mamba-cache-size", "48")
    ]
    assert choose_arms("stock:slots=8", 64)[0].meaning == "SGLang as it is; --max-mamba-cache-size 8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "out of off, stock"),
        ("stock,stock", "each arm once"),
        ("stock:max-state=3", r"no option 'max-state'; arm stock knows slots, .*max-states"),
        ("stock:checkpoints=all", "no option 'checkpoints'"),
        ("marconi:chekpoints=all", "no option 'chekpoints'; arm marconi knows .*checkpoints"),
        ("marconi:checkpoints=some", "checkpoints: --marconi-checkpoints: no checkpoint kind 'some'"),
        ("marconi:eviction=best", "eviction: --marconi-eviction: "),
        ("stock:slots=few", "slots: expected a whole number, got 'few'"),
        ("stock:slots", "slots needs a value"),
        ("stock:flag.", "no option 'flag.'"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_known(text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        choose_arms(text, 64)
