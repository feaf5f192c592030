"""Asks a live server: token ids in, a stream of tokens out, every failure a result and no exception.

`StreamingClient` speaks HTTP and server-sent events; `GenerateClient` is SGLang's own endpoint with token
ids. The endpoints that take text are in openai_client.py.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import aiohttp
import numpy as np
import orjson

from marconi_ext.servers.http_client import bearer
from marconi_ext.traces.request import token_array

OK = "ok"
CONNECT_S = 10.0
# Less than uvicorn's 5 s, so that no request goes out on a connection that the server is just closing.
KEEP_ALIVE_S = 4.0


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one request. Times are time.perf_counter() seconds.

    status: a results.Status; error: what happened, '' when ok; http_status: None if no answer began
    sent_s: its first attempt; first_token_s: None if no token came; chunk_s: arrivals of chunks with tokens
    prompt_tokens: as the server counts; cached_tokens: of those not computed, at most all of them; None if
    it doesn't say
    output_ids: int32[n]; where the server sends text, that text's ids; completion_tokens: the server's count
    retries, retry_s: failed attempts before, and the time from sent_s until the last attempt was sent
    """

    status: str
    error: str
    sent_s: float
    first_token_s: float | None
    end_s: float
    prompt_tokens: int = 0
    cached_tokens: int | None = 0
    output_ids: np.ndarray = field(default_factory=lambda: token_array([]))
    completion_tokens: int = 0
    http_status: int | None = None
    chunk_s: tuple[float, ...] = ()
    retries: int = 0
    retry_s: float = 0.0
    retry_after_s: float | None = None  # what a refusing server asked for

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.sent_s


class MalformedStreamError(ValueError):
    """The server's stream isn't what its protocol promises."""


class AbortedError(MalformedStreamError):
    """The server ended the answer of its own."""


class Stream(Protocol):
    """Collects the server-sent events of one answer."""

    def feed(self, data: bytes, now_s: float) -> None:
        """Take one event's data. Raises MalformedStreamError."""

    def check(self) -> None:
        """Raise MalformedStreamError unless the answer is whole."""

    def answer(self, sent_s: float, end_s: float) -> Answer: ...


class StreamingClient:
    """HTTP, connections and failures of a streaming endpoint; use as `async with`."""

    path = ""

    def __init__(
        self, url: str, *, timeout_s: float = 120.0, connections: int = 0, api_key: str | None = None
    ) -> None:
        """timeout_s: for the whole answer; connections: most open at once, 0 for no limit; api_key: the
        server's. Raises BadInputError for a key that can't be sent."""
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._connections = connections
        self._headers = {"Content-Type": "application/json", **bearer(api_key)}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S),
            headers=self._headers,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._session is not None, "left before it was entered"
        await self._session.close()

    def body(self, input_ids: np.ndarray, answer_tokens: int) -> bytes:
        """The request for exactly `answer_tokens` tokens, greedily, after a prompt int32[L]."""
        raise NotImplementedError

    def stream(self, answer_tokens: int) -> Stream:
        raise NotImplementedError

    async def generate(self, input_ids: np.ndarray, answer_tokens: int) -> Answer:
        return await self.send(self.body(input_ids, answer_tokens), answer_tokens)

    async def send(self, body: bytes, answer_tokens: int) -> Answer:
        """Send a prepared body; never raises for what the server or the network does."""
        assert self._session is not None, "use it as `async with`"
        stream = self.stream(answer_tokens)
        seen: dict = {}
        sent_s = time.perf_counter()
        status, error = OK, ""
        try:
            async with self._session.post(self._url + self.path, data=body) as response:
                seen["http_status"] = response.status
                if response.status == 200:
                    await _read(response, stream)
                else:
                    text = (await response.content.read(2_000)).decode(errors="replace")
                    status, error = "http", f"HTTP {response.status}: {text[:200].strip()}"
                    seen["retry_after_s"] = _seconds(response.headers.get("Retry-After"))
        except (TimeoutError, aiohttp.ServerTimeoutError):
            status, error = "timeout", f"no answer within {self._timeout_s:g} s"
        except aiohttp.ClientPayloadError as reason:
            status, error = "malformed", f"the stream broke off: {str(reason)[:200]}"
        except (aiohttp.ClientError, OSError) as reason:
            if seen:  # the answer had begun
                status, error = "malformed", f"the stream broke off: {type(reason).__name__}"
            else:
                status, error = "connection", f"{type(reason).__name__}: {str(reason)[:200]}"
        except AbortedError as reason:
            status, error = "aborted", str(reason)
        except MalformedStreamError as reason:
            status, error = "malformed", str(reason)
        end_s = time.perf_counter()
        try:
            answer = stream.answer(sent_s, end_s)
        except (ValueError, TypeError, AttributeError, OverflowError) as reason:  # JSON of another shape
            answer = Answer("", "", sent_s, None, end_s, cached_tokens=None)
            status, error = "malformed", f"unexpected values in the stream: {reason}"
        return replace(answer, status=status, error=error, **seen)


async def _read(response: aiohttp.ClientResponse, stream: Stream) -> None:
    """Feed a stream with its events, each with the time at which its block arrived."""
    rest = b""
    async for block in response.content.iter_any():
        now_s = time.perf_counter()
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):  # blank lines and comments aren't events
                stream.feed(line[5:].strip(), now_s)
    if rest.strip():
        raise MalformedStreamError(f"the stream ended inside an event: {rest[:80]!r}")
    stream.check()


def _seconds(header: str | None) -> float | None:
    """A Retry-After in seconds; dates are ignored."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None


class GenerateClient(StreamingClient):
    """SGLang's /generate, which takes and gives token ids."""

    path = "/generate"

    def body(self, input_ids: np.ndarray, answer_tokens: int) -> bytes:
        wanted = {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True}
        return orjson.dumps(
            {"input_ids": np.ascontiguousarray(input_ids), "sampling_params": wanted, "stream": True},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )

    def stream(self, answer_tokens: int) -> Stream:
        return _GenerateStream(answer_tokens)


class _GenerateStream:
    """The events of /generate."""

    def __init__(self, answer_tokens: int) -> None:
        self._wanted = answer_tokens
        self._ids: list[int] = []
        self._meta: dict = {}
        self._chunk_s: list[float] = []
        self._done = False

    def feed(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        event = load_event(data)
        try:
            ids, meta = event["output_ids"], event["meta_info"]
            total = meta["completion_tokens"]
            # Servers send all tokens so far, or with --incremental-streaming-output only the new ones.
            ids, self._meta = ids if len(ids) == total else self._ids + ids, meta
        except (KeyError, TypeError):
            raise MalformedStreamError(f"unexpected event {data[:120].decode(errors='replace')!r}") from None
        if len(ids) > len(self._ids):
            self._chunk_s.append(now_s)
        self._ids = ids

    def check(self) -> None:
        reason = self._meta.get("finish_reason")
        if not self._done or not reason:
            raise MalformedStreamError("the stream ended before the answer did")
        if isinstance(reason, dict) and reason.get("type") == "abort":
            raise AbortedError(f"aborted by the server: {str(reason.get('message'))[:200]}")
        if len(self._ids) != self._wanted:
            raise MalformedStreamError(f"{len(self._ids)} tokens came, {self._wanted} were asked for")

    def answer(self, sent_s: float, end_s: float) -> Answer:
        prompt_tokens = int(self._meta.get("prompt_tokens") or 0)
        return Answer(
            status=OK,
            error="",
            sent_s=sent_s,
            first_token_s=self._chunk_s[0] if self._chunk_s else None,
            end_s=end_s,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_count(self._meta.get("cached_tokens") or 0, prompt_tokens),
            output_ids=_token_ids(self._ids),
            completion_tokens=len(self._ids),
            chunk_s=tuple(self._chunk_s),
        )


def cached_count(value: object, prompt_tokens: int) -> int:
    """A server's count of cached tokens. Raises ValueError unless it lies within the prompt."""
    if type(value) is not int or not 0 <= value <= prompt_tokens:
        raise ValueError(f"{value!r} cached of {prompt_tokens} prompt tokens")
    return value


def _token_ids(ids: object) -> np.ndarray:
    """int32[n] of an answer's ids. Raises ValueError for what are no token ids: numpy would round them."""
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 2**31 for one in ids):
        raise ValueError(f"no token ids: {str(ids)[:60]}")
    return token_array(ids)


def load_event(data: bytes) -> dict:
    """One event's JSON object. Raises MalformedStreamError, for the server's own error events too."""
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict):
        raise MalformedStreamError(f"unexpected event {data[:120].decode(errors='replace')!r}")
    if event.get("error"):
        raise MalformedStreamError(f"the server says: {str(event['error'])[:200]}")
    return event
