"""What is sent to ask for a dump of the tree, and token ids that only whoever asked can read.

/server_info, which carries dumps and explanations, is open to others.

The one who asks draws a key and sends it with the question, to an endpoint that may need the admin key. Token ids are
then combined with a stream of SHAKE-256 of that key and a name of the place, which is used once a key.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TREE_ARGUMENT = "marconi_tree"
KEY_ARGUMENTS = ("marconi_key_high", "marconi_key_low")
OFF, SHAPE, WITH_TOKENS, NEXT = 0, 1, 2, 3  # values of the first
HALF_BITS = 62  # SGLang takes numbers only; two of them make the key


@dataclass(frozen=True)
class Key:
    """One use: a dump of one tree, or one explanation. high, low: of `HALF_BITS` bits each"""

    high: int
    low: int

    @classmethod
    def draw(cls) -> Key:
        return cls(secrets.randbits(HALF_BITS), secrets.randbits(HALF_BITS))

    @classmethod
    def of(cls, numbers: Sequence[float | None]) -> Key | None:
        """From what was sent; None: no key."""
        if len(numbers) != 2 or not all(isinstance(n, int) and 0 <= n < 1 << HALF_BITS for n in numbers):
            return None
        high, low = numbers
        return cls(int(high or 0), int(low or 0))

    def _stream(self, place: str, length: int) -> np.ndarray:
        text = f"{self.high:x}.{self.low:x}.{place}".encode()
        return np.frombuffer(hashlib.shake_256(text).digest(length), np.uint8)

    def seal(self, tokens: Any, place: str) -> str:
        """tokens: int64[n] buffer; place: no two calls with one key have the same"""
        plain = np.frombuffer(tokens, np.int64).astype("<i4").view(np.uint8)
        return base64.b64encode((plain ^ self._stream(place, len(plain))).tobytes()).decode()

    def unseal(self, text: str, place: str) -> list[int]:
        """What was sealed; other numbers where the key or the place is another."""
        sealed = np.frombuffer(base64.b64decode(text), np.uint8)
        plain: list[int] = (sealed ^ self._stream(place, len(sealed))).view("<i4").tolist()
        return plain


Excerpt = dict[str, list[int] | list[list[int]]]
"""Token ids around a divergence, by what they are; `held` has some for each way on."""


def seal_excerpt(excerpt: Excerpt, key: Key) -> dict[str, Any]:
    """The same shape, with a text in place of each list of token ids."""
    return _each_list(excerpt, lambda ids, place: key.seal(array("q", ids), place))


def unseal_excerpt(sealed: dict[str, Any], key: Key) -> Excerpt:
    """What `seal_excerpt` was given."""
    return _each_list(sealed, key.unseal)


def _each_list(excerpt: dict[str, Any], change: Callable[[Any, str], Any]) -> dict[str, Any]:
    return {
        name: [change(way, f"{name}.{number}") for number, way in enumerate(value)]
        if name == "held"
        else change(value, name)
        for name, value in excerpt.items()
    }
