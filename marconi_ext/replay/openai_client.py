"""Asks any OpenAI-compatible server: the prompt goes out as text, and the answer's text comes back as ids.

The text is the trace's token ids, decoded with the trace's tokenizer. The server tokenises it its own way
(and wraps messages in its own template), so token counts are exact only where both tokenizers are the same.
"""

from typing import Any

import numpy as np
import orjson

from marconi_ext.replay.client import (
    Answer,
    MalformedStreamError,
    Stream,
    StreamingClient,
    cached_count,
    load_event,
)
from marconi_ext.replay.prompt_text import PromptText
from marconi_ext.traces.request import token_array


class _OpenAIClient(StreamingClient):
    """What /v1/completions and /v1/chat/completions share."""

    def __init__(
        self, url: str, *, model: str, text: PromptText, exact_length: bool = True, **connection: Any
    ) -> None:
        """exact_length: ask for `ignore_eos`, which SGLang and vLLM know, and count shorter answers as cut."""
        super().__init__(url, **connection)
        self._model, self._text, self._exact = model, text, exact_length

    def prompt(self, input_ids: np.ndarray) -> dict:
        raise NotImplementedError

    def body(self, input_ids: np.ndarray, answer_tokens: int) -> bytes:
        exact = {"ignore_eos": True} if self._exact else {}
        return orjson.dumps(
            {
                "model": self._model,
                **self.prompt(input_ids),
                "max_tokens": answer_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **exact,
            }
        )

    def stream(self, answer_tokens: int) -> Stream:
        return _OpenAIStream(answer_tokens if self._exact else None, self._text)


class CompletionsClient(_OpenAIClient):
    """/v1/completions: the prompt as one text."""

    path = "/v1/completions"

    def prompt(self, input_ids: np.ndarray) -> dict:
        return {"prompt": self._text.decode(input_ids)}


class ChatClient(_OpenAIClient):
    """/v1/chat/completions: the prompt as messages, found by the tokenizer's frames around them."""

    path = "/v1/chat/completions"

    def prompt(self, input_ids: np.ndarray) -> dict:
        return {"messages": self._text.messages(input_ids)}


class _OpenAIStream:
    """The events of both endpoints."""

    def __init__(self, wanted: int | None, text: PromptText) -> None:
        self._wanted, self._text = wanted, text
        self._parts: list[str] = []
        self._chunk_s: list[float] = []
        self._usage: dict = {}
        self._finish: str | None = None
        self._done = False

    def feed(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        event = load_event(data)
        try:
            self._usage = event.get("usage") or self._usage
            for choice in event["choices"]:
                self._finish = choice.get("finish_reason") or self._finish
                delta = choice.get("delta") or choice
                part = delta.get("reasoning_content") or delta.get("content") or delta.get("text")
                if part:
                    self._parts.append(part)
                    self._chunk_s.append(now_s)
        except (KeyError, TypeError, AttributeError):
            raise MalformedStreamError(f"unexpected event {data[:120].decode(errors='replace')!r}") from None

    def check(self) -> None:
        if not self._done or not self._finish:
            raise MalformedStreamError("the stream ended before the answer did")
        came = self._usage.get("completion_tokens")
        if self._wanted is not None and came is not None and came != self._wanted:
            raise MalformedStreamError(f"{came} tokens came, {self._wanted} were asked for")

    def answer(self, sent_s: float, end_s: float) -> Answer:
        details = self._usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        prompt_tokens = int(self._usage.get("prompt_tokens") or 0)
        ids = token_array(self._text.encode("".join(self._parts)))
        return Answer(
            status="ok",
            error="",
            sent_s=sent_s,
            first_token_s=self._chunk_s[0] if self._chunk_s else None,
            end_s=end_s,
            prompt_tokens=prompt_tokens,
            cached_tokens=None if cached is None else cached_count(cached, prompt_tokens),
            output_ids=ids,
            completion_tokens=int(self._usage.get("completion_tokens") or len(ids)),
            chunk_s=tuple(self._chunk_s),
        )
