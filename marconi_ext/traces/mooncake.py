"""Block-hash traces, Mooncake's form: each hash id stands for a block of prompt tokens together with all before it.

Mooncake's blocks have 512 tokens, others' 16 or 64: the size is what most of the first records agree with, or what
they say in `block_size`.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from marconi_ext.traces import fields
from marconi_ext.traces.files import json_records
from marconi_ext.traces.problems import Problems
from marconi_ext.traces.request import Request, token_array

BLOCK_SIZES = 512, 1024, 256, 128, 64, 32, 16  # tokens; the first is taken where several fit alike
LOOKED_AT = 200  # records that tell the size
FIRST_TOKEN_ID = 1_000  # below it tokenizers keep their control tokens
LAST_TOKEN_ID = 131_071  # Tekken's and Nemotron-H's vocabulary
MAX_INPUT_TOKENS = 2**24  # a longer prompt is a typing error, not a request


def read(path: Path, problems: Problems) -> Iterator[Request]:
    """Yield requests in the file's order; every request is a session of its own, as no session is known."""
    start_s, block_tokens = None, block_size(path)
    for line, record in json_records(path, problems):
        try:
            arrival_s = fields.number(record, "timestamp") / 1e3
            length = fields.count(record, "input_length")
            input_ids = expand_blocks(_hash_ids(record), length, block_tokens)
            answer = fields.count(record, "output_length")
            if answer > MAX_INPUT_TOKENS:
                raise fields.BrokenRecordError(f"output_length: {answer} is over {MAX_INPUT_TOKENS}")
        except fields.BrokenRecordError as error:
            problems.add(str(path), line, str(error))
            continue
        start_s = arrival_s if start_s is None else start_s
        # The trace doesn't tell answers apart, so each gets tokens that nobody shares.
        output_ids = _tokens_of(np.uint64(line) | np.uint64(1 << 63), answer)
        yield Request(f"{path.stem}/{line}", 0, arrival_s - start_s, input_ids, token_array(output_ids))


def block_size(path: Path) -> int:
    """Tokens a block, by the file's first records."""
    agree: Counter[int] = Counter()
    for _, record in islice(json_records(path, Problems(on_problem=lambda _: None)), LOOKED_AT):
        try:
            if "block_size" in record:
                return max(fields.count(record, "block_size"), 1)
            length, blocks = fields.count(record, "input_length"), len(_hash_ids(record))
        except fields.BrokenRecordError:
            continue
        agree.update(size for size in BLOCK_SIZES if -(-length // size) == blocks)
    return max(BLOCK_SIZES, key=lambda size: agree[size])


def expand_blocks(hash_ids: list[int], length: int, block_tokens: int = BLOCK_SIZES[0]) -> np.ndarray:
    """int32[length] - `block_tokens` deterministic tokens a hash id, the last block cut to the prompt's length."""
    if length < 1 or length > MAX_INPUT_TOKENS:
        raise fields.BrokenRecordError(f"input_length: {length} is not in 1 … {MAX_INPUT_TOKENS}")
    blocks = -(-length // block_tokens)
    if len(hash_ids) != blocks:
        raise fields.BrokenRecordError(
            f"hash_ids: {len(hash_ids)} ids, but {length} tokens are {blocks} blocks of {block_tokens}"
        )
    return token_array(np.concatenate([_tokens_of(np.uint64(h), block_tokens) for h in hash_ids])[:length])


def _hash_ids(record: dict) -> list[int]:
    ids = fields.listing(record, "hash_ids")
    if not all(type(item) is int and 0 <= item < 2**63 for item in ids):
        raise fields.BrokenRecordError("hash_ids: expected whole numbers of at least 0")
    return ids


def _tokens_of(seed: np.uint64, n: int) -> np.ndarray:
    """int64[n] - tokens drawn by SplitMix64 from a seed (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += (seed + np.uint64(1)) * np.uint64(0xD1342543DE82EF95)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    span = np.uint64(LAST_TOKEN_ID - FIRST_TOKEN_ID + 1)
    return (z % span).astype(np.int64) + FIRST_TOKEN_ID
