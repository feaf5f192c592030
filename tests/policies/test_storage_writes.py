"""The storage tier gets the share of states that the policy values most."""

from __future__ import annotations

import numpy as np
import pytest

from marconi_ext.policies.storage_writes import FEW, RECENT, StorageWrites


def test_the_best_share_is_written_whatever_the_scale() -> None:
    for scale in (1e-9, 1.0, 1e9):
        scores = np.random.default_rng(0).random(4_000) * scale
        writes = StorageWrites(0.25)
        written = [writes.worth(float(score)) for score in scores]
        assert abs(np.mean(written[FEW:]) - 0.25) < 0.03
        assert scores[written][FEW:].mean() > scores[~np.array(written)].mean() + 0.4 * scale


def test_it_follows_traffic_whose_states_have_become_worth_less() -> None:
    writes = StorageWrites(0.5)
    for _ in range(RECENT):
        writes.worth(100.0)
    written = [writes.worth(float(score)) for score in np.random.default_rng(1).random(3 * RECENT)]
    assert not any(written[: RECENT // 4]) and np.mean(written[-RECENT:]) == pytest.approx(0.5, abs=0.1)


def test_all_are_written_until_they_can_be_told_apart() -> None:
    writes = StorageWrites(0.1)
    assert all(writes.worth(float(-number)) for number in range(FEW - 1))
    assert not writes.worth(-100.0)
    alike = StorageWrites(0.1)
    assert all(alike.worth(1.0) for _ in range(100))
    assert all(StorageWrites(1.0).worth(float(-number)) for number in range(100))


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        StorageWrites(share)
