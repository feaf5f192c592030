"""Asks a live SGLang server: token ids in, a stream of token ids out, every failure a result and no exception."""

import json
import time
from dataclasses import dataclass, field, replace

import httpx
import numpy as np

from marconi_ext.traces.request import token_array

OK = "ok"


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one request. Times are time.perf_counter() seconds.

    status: 'ok', 'http', 'timeout', 'connection' or 'malformed'; error: what happened, '' when ok
    first_token_s: None if no token came; cached_tokens: prompt tokens that the server did not compute
    """

    status: str
    error: str
    sent_s: float
    first_token_s: float | None
    end_s: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_ids: np.ndarray = field(default_factory=lambda: token_array([]))

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.sent_s


class MalformedStreamError(ValueError):
    """The server's stream isn't what /generate promises."""


class GenerateClient:
    """A client of SGLang's /generate; use as `async with`."""

    def __init__(self, url: str, *, timeout_s: float = 120.0, connections: int = 64) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # a proxy has no business between us and the loopback
        )
        self._timeout_s = timeout_s

    async def __aenter__(self) -> "GenerateClient":
        return self

    async def __aexit__(self, *exc) -> None:
        await self._http.aclose()

    async def generate(self, input_ids: np.ndarray, answer_tokens: int) -> Answer:
        """Ask for exactly `answer_tokens` tokens, greedily, after a prompt int32[L]."""
        body = {
            "input_ids": input_ids.tolist(),
            "sampling_params": {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True},
            "stream": True,
        }
        sent_s = time.perf_counter()
        stream = _Stream()
        status, error = OK, ""
        try:
            async with self._http.stream("POST", "/generate", json=body) as response:
                if response.status_code == 200:
                    async for line in response.aiter_lines():
                        stream.feed(line)
                        if time.perf_counter() - sent_s > self._timeout_s:
                            raise httpx.ReadTimeout("the whole answer took too long")
                    stream.check(answer_tokens)
                else:
                    text = (await response.aread()).decode(errors="replace")
                    status, error = "http", f"HTTP {response.status_code}: {text[:200].strip()}"
        except httpx.TimeoutException as reason:
            status, error = (
                "timeout",
                f"no answer within {self._timeout_s:g} s ({reason or type(reason).__name__})",
            )
        except httpx.RemoteProtocolError as reason:
            status, error = "malformed", f"the stream broke off: {reason}"
        except (httpx.HTTPError, OSError) as reason:
            status, error = "connection", f"{type(reason).__name__}: {reason}"
        except MalformedStreamError as reason:
            status, error = "malformed", str(reason)
        return replace(stream.answer(sent_s), status=status, error=error)


class _Stream:
    """Collects the server-sent events of one answer."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._meta: dict = {}
        self._first_token_s: float | None = None
        self._done = False

    def feed(self, line: str) -> None:
        """Take one line of the stream. Raises MalformedStreamError."""
        if not line.startswith("data:"):
            return  # blank lines and comments
        data = line[5:].strip()
        if data == "[DONE]":
            self._done = True
            return
        try:
            event = json.loads(data)
            if "error" in event:
                raise MalformedStreamError(f"the server says: {str(event['error'])[:200]}")
            ids, self._meta = event["output_ids"], event["meta_info"]
            total = self._meta["completion_tokens"]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, MalformedStreamError):
                raise
            raise MalformedStreamError(f"unexpected event {data[:120]!r}") from None
        # Servers send all tokens so far, or with --incremental-streaming-output only the new ones.
        self._ids = ids if len(ids) == total else self._ids + ids
        if self._ids and self._first_token_s is None:
            self._first_token_s = time.perf_counter()

    def check(self, answer_tokens: int) -> None:
        """Raise MalformedStreamError unless the answer is whole."""
        if not self._done or not self._meta.get("finish_reason"):
            raise MalformedStreamError("the stream ended before the answer did")
        reason = self._meta["finish_reason"]
        if isinstance(reason, dict) and reason.get("type") == "abort":
            raise MalformedStreamError(f"aborted by the server: {str(reason.get('message'))[:200]}")
        if len(self._ids) != answer_tokens:
            raise MalformedStreamError(f"{len(self._ids)} tokens came, {answer_tokens} were asked for")

    def answer(self, sent_s: float) -> Answer:
        return Answer(
            status=OK,
            error="",
            sent_s=sent_s,
            first_token_s=self._first_token_s,
            end_s=time.perf_counter(),
            prompt_tokens=int(self._meta.get("prompt_tokens") or 0),
            cached_tokens=int(self._meta.get("cached_tokens") or 0),
            output_ids=token_array(self._ids),
        )
