"""What a server without the extension tells of its prefix cache: SGLang's and vLLM's own metrics.

Both count tokens that came from the cache. Neither counts tokens whose KV was there and which were computed again for
want of a recurrent state: only sending known traffic (`marconi replay`) can tell that.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import httpx

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.servers.http_client import direct_client

SAMPLE = re.compile(r"^([a-zA-Z_:]+)(?:\{.*\})? ([-+0-9.eE]+)$", re.MULTILINE)
ENGINES = {
    "SGLang": ("sglang:prompt_tokens_total", "sglang:cached_tokens_total"),
    "vLLM": ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"),
}
"""engine -> its counters of prompt tokens looked up, and of those found"""


@dataclass(frozen=True)
class Reuse:
    """Totals at one moment, in tokens. at_s: time.monotonic()"""

    engine: str
    prompt_tokens: float
    cached_tokens: float
    at_s: float

    def since(self, before: Reuse) -> Reuse:
        """What came after `before`; all of it where the server was started anew."""
        if self.prompt_tokens < before.prompt_tokens:
            return self
        prompt, cached = self.prompt_tokens - before.prompt_tokens, self.cached_tokens - before.cached_tokens
        return Reuse(self.engine, prompt, cached, self.at_s)

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens that came from the cache; None: there were none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


class PlainServer:
    """A server of either engine, with its metrics on. Raises BadInputError for what is no URL."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        try:
            self._http = direct_client(self.url, timeout_s=10.0, api_key=api_key)
        except (ValueError, httpx.InvalidURL) as error:
            raise BadInputError(f"URL {url!r}: {error}; expected http://HOST:PORT") from None

    def look(self) -> Reuse:
        """Raises CheckFailedError where there is no server, or none that tells."""
        try:
            answer = self._http.get("/metrics", follow_redirects=True)
        except (httpx.HTTPError, OSError) as error:
            raise CheckFailedError(f"{self.url}: no server there ({error or type(error).__name__})") from None
        if answer.status_code != 200:
            raise CheckFailedError(
                f"{self.url}/metrics: HTTP {answer.status_code}; start SGLang with --enable-metrics (vLLM has them on)"
            )
        return read_metrics(answer.text, self.url)


def read_metrics(text: str, url: str) -> Reuse:
    """The totals in a page of metrics; samples of all ranks and sources are added up."""
    totals: dict[str, float] = {}
    for name, value in SAMPLE.findall(text):
        totals[name] = totals.get(name, 0.0) + float(value)
    for engine, (prompt, cached) in ENGINES.items():
        if prompt in totals:
            return Reuse(engine, totals[prompt], totals.get(cached, 0.0), time.monotonic())
    raise CheckFailedError(f"{url}/metrics: neither SGLang's nor vLLM's; has it served a request yet?")
