"""Texts that stand for drawn token ids, so that a chat template can write conversations that nobody said.

Ordinary ids are characters of a private plane; what a template adds is ASCII, a token a byte, and each of its markers
is one token. The same ids are a tokenizer's that has no merges, so that a server can be given one: `vocabulary_of`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from marconi_ext.errors import BadInputError
from marconi_ext.traces.chat_template import MARKERS, pieces
from marconi_ext.traces.script import CONTROL_IDS

PRIVATE_PLANE = 0xF0000
LARGEST_VOCABULARY = 0x110000 - PRIVATE_PLANE
BYTES = 256


class IdText:
    """Token ids as text and back. vocabulary: size, ordinary ids begin where `draw_tokens` has them begin"""

    def __init__(self, vocabulary: int) -> None:
        self._first_byte = min(CONTROL_IDS, vocabulary // 4)
        if not self._first_byte + BYTES <= vocabulary <= LARGEST_VOCABULARY or self._first_byte < 2 * len(
            MARKERS
        ):
            raise BadInputError(
                f"chats of a template need a vocabulary of 400 to {LARGEST_VOCABULARY} tokens"
            )
        self._piece = lru_cache(maxsize=1 << 14)(self._encode_piece)
        first = self._first_byte - len(MARKERS)
        self.markers = {marker: first + place for place, marker in enumerate(MARKERS)}

    def text(self, ids: np.ndarray) -> str:
        """int[n] → n characters."""
        return (ids.astype(np.uint32) + PRIVATE_PLANE).astype("<u4").tobytes().decode("utf-32-le")

    def encode(self, text: str) -> np.ndarray:
        """int32[n] - of what `text` gave, and of what a template wrote around it."""
        found = [self._piece(piece) for piece in pieces(text)]
        return np.concatenate(found) if found else np.empty(0, np.int32)

    def _encode_piece(self, text: str) -> np.ndarray:
        if text in self.markers:
            return np.array([self.markers[text]], np.int32)
        points = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)
        return np.where(
            points >= PRIVATE_PLANE, points - PRIVATE_PLANE, points % BYTES + self._first_byte
        ).astype(np.int32)

    def of_byte(self, byte: int) -> int:
        """The id of a byte."""
        return self._first_byte + byte
