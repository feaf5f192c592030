"""Mistral-common's Tekken tokenizer, cut to a small model's vocabulary."""

import json
import shutil
from pathlib import Path

TEKKEN_SPECIAL_TOKENS = 1000  # ids below are control tokens; byte and merge tokens follow
TEKKEN_BYTES = 256
TEKKEN_FULL_VOCAB = 131_072
MIN_VOCAB = TEKKEN_SPECIAL_TOKENS + TEKKEN_BYTES


def write_tekken(path: Path, vocab: int) -> None:
    """Write mistral-common's Tekken, cut to `vocab` ids (1,000 control tokens, the rest bytes and merges).

    Tekken's merges are ordered, so its first n are a tokenizer of their own: any text still encodes and
    decodes exactly, only into more tokens. At 131,072 ids it is Tekken itself.
    """
    import mistral_common

    source = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    if vocab == TEKKEN_FULL_VOCAB:
        shutil.copyfile(source, path)
        return
    tekken = json.loads(source.read_text(encoding="utf-8"))
    tekken["config"]["default_vocab_size"] = vocab
    tekken["config"]["num_vocab_tokens"] = vocab - TEKKEN_SPECIAL_TOKENS
    tekken["vocab"] = tekken["vocab"][: vocab - TEKKEN_SPECIAL_TOKENS]
    path.write_text(json.dumps(tekken, ensure_ascii=False), encoding="utf-8")
