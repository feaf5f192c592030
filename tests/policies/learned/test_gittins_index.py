"""Parts of a class in the learned index: they differ from the whole only beyond chance."""

import numpy as np

from marconi_ext.policies.learned.classes import BASIC, FINE
from marconi_ext.policies.learned.gittins_index import DOUBT_REQUESTS, KEPT_WHEN_WRONG, GittinsIndex


def index_of(uses: list[float], exposure: list[float]) -> GittinsIndex:
    """Two parts of one group and a class of its own, seen at ages from 8 to 11."""
    index = GittinsIndex(3, 1e15, prior=np.ones(2), groups=np.array([0, 0, 1]))
    index.uses[:, 6], index.exposure[:, 6] = uses, exposure
    index.refresh(0)
    return index


def test_parts_that_differ_by_chance_have_the_index_of_the_whole() -> None:
    value = index_of([9.0, 13.0, 20.0], [100.0, 100.0, 200.0]).value  # 11 expected of each, give or take 3.3
    assert value[0].tolist() == value[1].tolist()


def test_a_part_that_differs_is_told_apart_by_what_lies_beyond_chance() -> None:
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


def test_beginning_from_what_was_seen_of_late_forgets_all_else() -> None:
    index, lately = index_of([40.0, 40.0, 20.0], [400.0, 400.0, 200.0]), index_of([0.0, 3.0, 0.0], [9.0] * 3)
    index.begin_from(lately)
    index.refresh(DOUBT_REQUESTS)  # nothing is new since, so nothing is in doubt
    assert np.isclose(index.uses.sum(), 3.0)
    assert np.isclose(index.exposure.sum(), 27.0)
    assert np.allclose(index.value, lately.value, rtol=0.05)


def refreshed_after(uses: float) -> GittinsIndex:
    """A class with a hazard of 0.1 lives 100 more requests, with so many uses."""
    index = index_of([400.0, 400.0, 200.0], [4000.0, 4000.0, 2000.0])
    index.uses[2, 6] += uses
    index.exposure[2, 6] += 100.0
    index.refresh(DOUBT_REQUESTS)
    return index


def test_a_class_that_turns_out_wrong_believes_less_of_what_it_had_seen() -> None:
    """10 uses expected, give or take 3.2: 30 are another traffic."""
    index = refreshed_after(30.0)
    assert np.isclose(index.exposure[2, 6], 100.0 + 2000.0 * KEPT_WHEN_WRONG)
    assert np.isclose(index.uses[2, 6], 30.0 + 200.0 * KEPT_WHEN_WRONG)
    assert np.isclose(index.exposure[0, 6], 4000.0)  # others weren't wrong


def test_a_class_that_differs_by_chance_keeps_what_it_had_seen() -> None:
    assert np.isclose(refreshed_after(18.0).exposure[2, 6], 2100.0)
    assert np.isclose(refreshed_after(2.0).exposure[2, 6], 2100.0)


def test_bursts_that_are_usual_are_no_other_traffic() -> None:
    """Nothing for a while, then twice the uses expected: after some of that it surprises nobody."""
    index = index_of([4000.0, 4000.0, 2000.0], [40_000.0, 40_000.0, 20_000.0])
    kept = []
    for turn in range(40):
        index.uses[2, 6] += 20.0 * 2 * (turn % 2)
        before = index.exposure[2, 6]
        index.exposure[2, 6] += 200.0
        index.refresh(DOUBT_REQUESTS)
        kept.append(index.exposure[2, 6] > before)
    assert not kept[0]
    assert all(kept[10:])


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
        "tail, 17+ turns",
        "input end, 2+ forks",
        "forked often, passed rarely",
        "input end, no turn",
    ]
