"""A prompt with an image never resumes from a state behind another image, though the tokens are the same.

SGLang puts the media's hash into the tokens that key its cache; states and KV are found by those keys alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from engineless_cache import Driver, publish_settings
from sglang.srt.managers.mm_utils import pad_mm_tokens
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs

IMAGE_TOKEN, BEFORE, IMAGE, AFTER = 7, 40, 16, 30
ANSWER = array("q", [9, 10, 11])


def prompt(*hashes: int, more: int = 0) -> array:
    """Text, then a picture and text for each hash, keyed as SGLang keys it."""
    ids, items = array("q", range(100, 100 + BEFORE)), []
    for image in hashes:
        items.append(MultimodalDataItem(modality=Modality.IMAGE, offsets=[(len(ids), len(ids) + IMAGE - 1)]))
        items[-1].set_hash(image)
        ids.extend([IMAGE_TOKEN] * IMAGE)
        ids.extend(range(200, 200 + AFTER))
    ids.extend(range(300, 300 + more))
    return pad_mm_tokens(ids, MultimodalInputs(mm_items=items, im_token_id=IMAGE_TOKEN))


@pytest.fixture
def hits() -> Callable[[array], int]:
    """Serves a prompt, and says how many of its tokens were reused."""
    publish_settings(64)
    driver = Driver("marconi", slots=40, tokens=4_000, context_tokens=400)
    number = iter(range(1_000))

    def serve(ids: array) -> int:
        driver.serve(next(number), ids, ANSWER)
        return driver.hit_tokens

    return serve


def test_another_image_never_hits(hits: Callable[[array], int]) -> None:
    first = 0x1234_5678_9ABC_DEF0
    assert hits(prompt(first)) == 0
    assert hits(prompt(first)) == BEFORE + IMAGE + AFTER - 1
    # the same low 32 bits; the hit ends with the text before the image, once a state lies there
    others = [first ^ 1 << 40, first ^ 1]
    assert all(hits(prompt(other)) <= BEFORE for other in others)
    behind = BEFORE + IMAGE + AFTER - 1  # where each image's own prompt has left a state
    assert hits(prompt(others[0], more=5)) == behind
    assert hits(prompt(first, others[0])) == behind
    assert behind <= hits(prompt(first, others[1])) <= behind + 1  # up to the second image


def test_without_the_hash_it_would() -> None:
    """What the keys keep apart: the plain tokens are equal."""
    assert prompt(1) != prompt(2)
    assert prompt(1)[:BEFORE] == prompt(2)[:BEFORE] and prompt(1)[-AFTER:] == prompt(2)[-AFTER:]
