"""The windowed search for a victim against a full scan."""

from typing import ClassVar

import numpy as np

from marconi_ext.policies.checkpoints import CheckpointBook, Kind
from marconi_ext.policies.victims import EXACT_STATES, WINDOW, VictimSearch


class Given:
    """Scores handed in by row."""

    windowed: ClassVar[bool] = True

    def __init__(self, score: np.ndarray) -> None:
        self.score, self.noted, self.scored = score, [], 0

    def changed(self) -> np.ndarray:
        return np.array(self.noted, np.int64)

    def scores(self, book: CheckpointBook, rows: np.ndarray, tick: int) -> np.ndarray:
        self.scored += len(rows)
        return self.score[rows]


def book_of(rows: int) -> CheckpointBook:
    book = CheckpointBook(rows)
    for i in range(rows):
        book.set_live(book.add(-1, i + 1, Kind.LAST_TOKEN, i), i)
    return book


def test_small_pools_are_scanned_whole() -> None:
    policy = Given(np.random.default_rng(0).random(EXACT_STATES + 1))
    search, book = VictimSearch(policy), book_of(EXACT_STATES + 1)
    rows = book.live_rows()[:-1]
    assert search.lowest(book, rows, 1) == int(policy.score[:-1].argmin())
    policy.score[-1] = -1.0
    assert search.lowest(book, rows, 1, newcomer=EXACT_STATES) == EXACT_STATES


def test_large_pools_find_the_lowest_within_one_round_and_at_bounded_cost() -> None:
    n = 5000
    policy = Given(1 + np.random.default_rng(0).random(n))
    search, book = VictimSearch(policy), book_of(n)
    rows = book.live_rows()
    round_searches = -(-n // WINDOW)
    for _ in range(round_searches):
        search.lowest(book, rows, 1)
    assert policy.scored <= round_searches * (WINDOW + 64)
    assert search.lowest(book, rows, 1) == int(policy.score.argmin())
    policy.score[4321] = 0.0  # falls out of sight
    assert 4321 in [search.lowest(book, rows, 1) for _ in range(round_searches)]
    policy.score[4321] = 2.0
    policy.score[77], policy.noted = 0.0, [77]  # falls, and the policy says so
    assert search.lowest(book, rows, 1) == 77


def test_only_candidates_are_returned() -> None:
    n = 3000
    policy = Given(np.arange(n, dtype=float))
    search, book = VictimSearch(policy), book_of(n)
    for _ in range(20):
        search.lowest(book, book.live_rows(), 1)
    policy.noted = [0, 1]
    allowed = np.arange(500, n)
    assert all(search.lowest(book, allowed, 1) >= 500 for _ in range(20))
