"""Sums over answered requests, and the rates of them."""

from marconi_ext.results.ideal import Reusable
from marconi_ext.results.reuse import add_up


def test_what_was_lost_is_told_by_cause() -> None:
    """100 tokens, of which 60 are cached where 80 could be: 10 of the 20 lost are a first divergence."""
    reuse = add_up([(100, 60, Reusable(80, 70)), (100, 0, Reusable(0, 0))])
    assert (reuse.prompt_tokens, reuse.cached_tokens, reuse.ideal_tokens) == (200, 60, 80)
    assert reuse.rates() == {
        "hit_rate": 30.0,
        "ideal_hit_rate": 40.0,
        "state_limited_loss": 10.0,
        "first_divergence": 5.0,
        "avoidable": 5.0,
    }


def test_a_server_that_says_nothing_has_reused_nothing() -> None:
    reuse = add_up([(10, None, Reusable(8, 8))])
    assert reuse.cached_tokens == 0 and reuse.avoidable_tokens == 8


def test_of_no_requests_all_rates_are_zero() -> None:
    assert set(add_up([]).rates().values()) == {0.0}
