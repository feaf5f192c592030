"""The bar of a replay says what is reused."""

import numpy as np

from marconi_ext.replay.client import Answer
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.replay.sender import Record


def test_reuse_is_in_the_servers_tokens_where_it_counts_text_its_own_way() -> None:
    answer = Answer("ok", "", 0.0, 0.1, 0.2, prompt_tokens=300, cached_tokens=150)
    with ReplayProgress() as progress:
        progress.open_bar("chat", 1)
        progress.record(Record("s", 0, np.zeros(100, np.int32), answer))
        assert progress.live_text(None).startswith("50.0 % reused")
