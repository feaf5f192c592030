"""The hashes by which SGLang's events name blocks of tokens, for consumers that have no SGLang.

A block's hash is SHA-256 over the block above's digest and the block's tokens, four little-endian bytes each; events
carry its first eight bytes as a signed integer. Source: SGLang 0.5.23, mem_cache/utils.py and cpp_utils/native_hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np


def block_hashes(tokens: np.ndarray, page_tokens: int, *, cache_salt: str | None = None) -> Iterator[int]:
    """The hash of each whole page of `tokens: int[L]`, first page first; lazily, so that a reader may stop."""
    raw = np.ascontiguousarray(tokens, dtype="<u4").tobytes()
    digest = b""
    if cache_salt is not None:
        digest = hashlib.sha256(b"sglang-cache-salt-v1\0" + cache_salt.encode()).digest()
    step = 4 * page_tokens
    for start in range(0, len(raw) - step + 1, step):
        digest = hashlib.sha256(digest + raw[start : start + step]).digest()
        yield int.from_bytes(digest[:8], "big", signed=True)
