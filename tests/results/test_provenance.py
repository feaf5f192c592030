"""Where figures come from is told without what is secret."""

import pytest

from marconi_ext.results.provenance import without_keys


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["replay", "--api-key", "k", "--url", "u"], ["replay", "--api-key", "***", "--url", "u"]),
        (["replay", "--api-key=a b", "--url", "u"], ["replay", "--api-key=***", "--url", "u"]),
        (
            ["bench", "--server-flags", "--tp 2 --api-key k"],
            ["bench", "--server-flags", "--tp 2 --api-key ***"],
        ),
        (["x", "--admin-api-key", "k"], ["x", "--admin-api-key", "***"]),
        (["replay", "--trace", "api-key"], ["replay", "--trace", "api-key"]),
        (["replay", "--api-key"], ["replay", "--api-key"]),
    ],
)
def test_keys_are_left_out_of_the_command(given: list[str], kept: list[str]) -> None:
    assert without_keys(given) == kept
