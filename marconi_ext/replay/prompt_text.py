"""A trace's token ids as text again: for servers that take text instead of token ids."""

from collections.abc import Callable, Sequence

import numpy as np

from marconi_ext.traces.text import FolderTokenizer, Tekken, TextTokenizer, load_tokenizer


class PromptText:
    """Turns prompts back into text or messages, with the tokenizer that the trace was read with."""

    def __init__(self, tokenizer: str) -> None:
        """tokenizer: as `--tokenizer` names it. Raises BadInputError where there is none."""
        self._tokenizer: TextTokenizer = load_tokenizer(tokenizer)
        self._decode = decoder(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: np.ndarray) -> str:
        """The text of int32[L]; control tokens leave none."""
        return self._decode(ids.tolist())

    def messages(self, ids: np.ndarray) -> list[dict[str, str]]:
        """OpenAI-style messages of int32[L].

        What lies in no frame was the assistant's; a prompt without any frame is one user message. Tool
        results go out as the user's: `role: tool` needs the ids of calls, which traces don't have.
        """
        found = [(role, self._decode(part)) for role, part in split_frames(ids.tolist(), self._tokenizer)]
        found = [(role, text) for role, text in found if text.strip()]
        if all(role == "assistant" for role, _ in found):
            return [{"role": "user", "content": self.decode(ids)}]
        return [{"role": "user" if role == "tool" else role, "content": text} for role, text in found]


def decoder(tokenizer: TextTokenizer) -> Callable[[Sequence[int]], str]:
    """The way from token ids back to text, which drops ids that the tokenizer doesn't have."""
    if isinstance(tokenizer, FolderTokenizer):
        folder, entries = tokenizer.model, tokenizer.model.get_vocab_size()
        return lambda ids: folder.decode([i for i in ids if i < entries], skip_special_tokens=True)
    assert isinstance(tokenizer, Tekken)
    model = tokenizer.model
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

    size = model.n_words
    return lambda ids: model.decode([i for i in ids if i < size], SpecialTokenPolicy.IGNORE)


def split_frames(ids: list[int], tokenizer: TextTokenizer) -> list[tuple[str, list[int]]]:
    """(role, ids between) of each message, in order; tokens outside any frame are the assistant's.

    Where every role has an opening frame, only those split: their ends may be plain text (a newline).
    """
    frames = tokenizer.frames
    opening: dict[int, list[tuple[str, list[int]]]] = {}
    for name, (start, _) in frames.items():
        if start:
            opening.setdefault(start[0], []).append((name, start))
    closing = {} if frames["assistant"][0] else {end[0]: end for _, end in frames.values() if end}
    parts: list[tuple[str, list[int]]] = []
    role, begin, i = "assistant", len(tokenizer.start), len(tokenizer.start)
    while i < len(ids):
        token, length = ids[i], 0
        following = role
        if token in closing:
            following, length = "assistant", len(closing[token])
        for name, start in opening.get(token, ()):
            if ids[i : i + len(start)] == start:
                following, length = name, len(start)
        if length:
            parts.append((role, ids[begin:i]))
            role, begin, i = following, i + length, i + length
        else:
            i += 1
    parts.append((role, ids[begin:]))
    return [(role, part) for role, part in parts if part]
