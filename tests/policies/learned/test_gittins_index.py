"""Parts of a class in the learned index: they differ from the whole only beyond chance."""

import numpy as np
import pytest

from marconi_ext.policies.learned.classes import BASIC, FINE
from marconi_ext.policies.learned.gittins_index import GittinsIndex, gittins
from marconi_ext.policies.learned.hazards import BUCKETS, age_bucket


def index_of(uses: list[float], exposure: list[float]) -> GittinsIndex:
    """Two parts of one group and a class of its own, seen at ages from 8 to 11."""
    index = GittinsIndex(3, 1e15, prior=np.ones(2), groups=np.array([0, 0, 1]))
    index.uses[:, 6], index.exposure[:, 6] = uses, exposure
    index.refresh(0)
    return index


def test_parts_that_differ_by_chance_have_the_index_of_the_whole() -> None:
    value = index_of([9.0, 13.0, 20.0], [100.0, 100.0, 200.0]).value  # 11 expected of each, give or take 3.3
    assert value[0].tolist() == value[1].tolist()


def test_parts_are_told_apart_by_what_lies_beyond_chance() -> None:
    value = index_of([0.0, 80.0, 20.0], [400.0, 400.0, 200.0]).value
    assert value[0, 6] < 0.5 * value[1, 6]
    assert value[0, 6] > 0  # not all of the difference is believed


def test_a_group_is_estimated_as_one_class() -> None:
    """Its rate is that of both parts together: seen in a part without data."""
    parts = index_of([40.0, 0.0, 20.0], [400.0, 0.0, 200.0]).value
    whole = GittinsIndex(2, prior=np.ones(2))
    whole.uses[:, 6], whole.exposure[:, 6] = [40.0, 20.0], [400.0, 200.0]
    whole.refresh(0)
    assert np.allclose(parts[1], whole.value[0])


def test_believing_less_leans_more_on_the_prior() -> None:
    index = index_of([40.0, 40.0, 20.0], [400.0, 400.0, 200.0])
    before = index.rate[2, 6]
    index.believe_less(1 / 16)
    index.refresh(0)
    assert np.isclose(index.exposure.sum(), 1000 / 16)
    assert before * 0.5 < index.rate[2, 6] < before * 2


def test_an_index_computed_later_counts_what_was_seen_then() -> None:
    at_once, later = (index_of([40.0, 40.0, 20.0], [400.0, 400.0, 200.0]) for _ in range(2))
    at_once.catch_up()
    for index in (at_once, later):
        index.used(2, 9)
        index.expose_one(1, 0, 500)
        index.believe_less(1 / 16)
    assert later.at_one(2, 9) == at_once.at_one(2, 9)
    assert (later.value == at_once.value).all() and (later.rate == at_once.rate).all()
    later.refresh(0)
    assert (later.value != at_once.value).any()


def test_the_index_by_hand() -> None:
    """No use before age 1, then one in two requests: from 0 the best window is endless, and waits one request."""
    rates = np.full((1, BUCKETS), 0.5)
    rates[0, 0] = 1e-7
    value = gittins(rates)[0]
    assert np.isclose(value[0], 1 / (1 + 2))
    assert np.allclose(value[1:], 0.5)


def test_the_index_of_falling_hazards_is_the_hazard() -> None:
    rates = 1.0 / np.arange(1, BUCKETS + 1)[None, :]
    assert np.allclose(gittins(rates), rates)


def test_exposure_one_by_one_and_all_at_once_is_the_same() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 100_000, 500)
    high = low + rng.integers(0, 3_000, 500) * rng.integers(0, 2, 500)
    low[:100], high[:100] = low[:100] % 10, low[:100] % 10 + high[:100] % 7
    one, many = (GittinsIndex(2, prior=np.ones(2)) for _ in range(2))
    labels = rng.integers(0, 2, 500)
    many.expose(labels, low, high)
    for label, first, last in zip(labels.tolist(), low.tolist(), high.tolist(), strict=True):
        one.expose_one(label, first, last)
    assert np.allclose(one.exposure, many.exposure)
    assert np.isclose(many.exposure.sum(), (high - low).sum())


def test_every_class_has_a_name_of_its_own_and_a_prior() -> None:
    for classes in (BASIC, FINE):
        assert len(set(classes.names)) == len(classes.names)
    assert FINE.prior is not None and FINE.groups is not None
    assert len(FINE.groups) == len(FINE.names)
    assert set(FINE.groups.tolist()) == set(range(len(FINE.prior)))
    found = [FINE.fresh(9, 1), FINE.tail(20), FINE.inner(2, 4), FINE.often(100.0), FINE.input_end(0)]
    assert [FINE.names[label] for label in found] == [
        "tail of a fork whose tails go on: < 15%",
        "tail, 16+ turns",
        "input end, 2+ forks",
        "forked often, passed rarely",
        "input end, no turn",
    ]


def test_index_prefers_what_comes_back_soon() -> None:
    """Class 0 is used at age 4, class 1 at age 100 only; both are exposed alike. At age 2 class 0 is worth more;
    a class that was never used is worth least."""
    index = GittinsIndex(3)
    for _ in range(200):
        index.used(0, 4)
        index.used(1, 100)
        ages = np.array([0, 0, 0]), np.array([4, 100, 200])
        index.expose(np.array([0, 1, 2]), *ages)
    index.refresh(0)
    at = int(age_bucket(np.float64(2)))
    assert index.value[0, at] > index.value[1, at] > index.value[2, at]
    assert index.exposure.sum() == pytest.approx(200 * 304)
    index.refresh(4000)
    assert index.uses.sum() == pytest.approx(200)  # one half-life
