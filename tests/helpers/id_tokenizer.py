"""A tokenizer of `IdText`'s ids with one of the miniature chat templates, as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from marconi_ext.traces.chat_template import source
from marconi_ext.traces.id_text import BYTES, IdText


def write_tokenizer(folder: Path, template: str, vocabulary: int) -> Path:
    """A token a byte, no merges, each marker one token. template: a file of `traces/templates`. Returns the folder."""
    ids = IdText(vocabulary)
    names = _byte_names()
    vocab = {names[byte]: ids.of_byte(byte) for byte in range(BYTES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | ids.markers, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in ids.markers])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": source(template)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _byte_names() -> list[str]:
    """What byte-level tokenizers call each byte: printable ones themselves, the rest from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, extra = [], BYTES
    for byte in range(BYTES):
        if byte in printable:
            names.append(chr(byte))
        else:
            names.append(chr(extra))
            extra += 1
    return names
