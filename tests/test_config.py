"""Flag values: what is accepted, and messages that name the flag."""

import pytest

from marconi_ext.config import ALL_KINDS, ConfigError, MarconiConfig, build_config


def test_defaults_and_round_trip() -> None:
    config = build_config({"eff_weight": None, "checkpoints": None})
    assert (
        config.eff_weight == "auto" and config.checkpoints == ALL_KINDS and config.bootstrap_multiplier == 5
    )
    assert MarconiConfig.model_validate_json(config.model_dump_json()) == config


def test_values_as_the_command_line_gives_them() -> None:
    config = build_config(
        {"eff_weight": "0.5", "bootstrap_window_size": "100", "checkpoints": "last-token, branch"}
    )
    assert config.eff_weight == 0.5 and config.bootstrap_window_size == 100
    assert config.checkpoints == ("branch", "last-token")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eff_weight": "much"}, "--marconi-eff-weight: expected 'auto' or a number"),
        ({"eff_weight": "-1"}, "--marconi-eff-weight: expected 'auto' or a finite number of at least 0"),
        ({"eff_weight": "nan"}, "--marconi-eff-weight: expected 'auto' or a finite number of at least 0"),
        ({"bootstrap_window_size": "0"}, "--marconi-bootstrap-window-size: .*greater than or equal to 1"),
        ({"bootstrap_multiplier": "five"}, "--marconi-bootstrap-multiplier: .*integer"),
        ({"tuning_interval": "-3"}, "--marconi-tuning-interval: "),
        (
            {"checkpoints": "branch,middle"},
            "--marconi-checkpoints: no checkpoint kind 'middle'; choose from branch",
        ),
        ({"checkpoints": " , "}, "--marconi-checkpoints: no checkpoint kind given"),
    ],
)
def test_bad_values_name_the_flag_and_what_is_accepted(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(values)
