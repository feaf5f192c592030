"""Looks at a server while it is replayed against: the extension's figures and the engine's metrics, timed."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable

import aiohttp
import orjson

from marconi_ext.results.folder import ServerSnapshot
from marconi_ext.servers.http_client import bearer

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{.*\})?)\s+(\S+)")
SAME_LABELS = re.compile(r'(?:engine_type|model_name|(?:moe_ep|pp|tp|dp)_rank)="[^"]*",?')
OTHER_RANK = re.compile(r'tp_rank="[1-9]')
KEPT_METRICS = ("sglang:", "vllm:", "marconi")
ASK_S = 10.0


class ServerWatch:
    """Takes a snapshot every `every_s` seconds, and one at the start and at the end; `async with`.

    A server that knows neither /server_info nor /metrics (no SGLang, or without --enable-metrics) gives
    none; failures of a server that is just dying are left to the requests to tell.
    """

    def __init__(
        self,
        url: str,
        every_s: float,
        on_snapshot: Callable[[ServerSnapshot], None],
        api_key: str | None = None,
    ) -> None:
        self._headers = bearer(api_key)
        self._url, self._every_s, self._tell = url.rstrip("/"), every_s, on_snapshot
        self._began_s = 0.0
        self._paths = {"/server_info", "/metrics"}
        self._task: asyncio.Task | None = None

    async def __aenter__(self) -> "ServerWatch":
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ASK_S), headers=self._headers
        )
        await self._look()
        self._began_s = time.perf_counter()
        if self._every_s > 0:
            self._task = asyncio.ensure_future(self._loop())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._look()
        await self._session.close()

    async def _loop(self) -> None:
        while self._paths:
            await asyncio.sleep(self._every_s)
            await self._look()

    async def _look(self) -> None:
        info, metrics = await self._get("/server_info"), await self._get("/metrics")
        if info is None and metrics is None:
            return
        at_s = round(time.perf_counter() - self._began_s, 3) if self._began_s else 0.0
        self._tell(ServerSnapshot(at_s=at_s, marconi=section(info), metrics=samples(metrics)))

    async def _get(self, path: str) -> bytes | None:
        if path not in self._paths:
            return None
        try:
            async with self._session.get(self._url + path) as response:
                if response.status == 200:
                    return await response.read()
                self._paths.discard(path)  # it doesn't have that page
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass
        return None


def section(info: bytes | None) -> dict | None:
    """The extension's part of /server_info; None where it isn't live."""
    try:
        states = orjson.loads(info or b"{}").get("internal_states") or [{}]
        found = states[0].get("marconi")
    except (orjson.JSONDecodeError, AttributeError, IndexError, KeyError):
        return None
    return found if isinstance(found, dict) else None


def samples(metrics: bytes | None) -> dict[str, float]:
    """`name{labels}` -> value of the engine's and our samples of rank 0; histograms without their buckets.

    Labels that are the same for all samples of a server are left out.
    """
    found = {}
    for line in (metrics or b"").decode(errors="replace").splitlines():
        match = SAMPLE.match(line)
        if not match or not line.startswith(KEPT_METRICS) or "_bucket{" in line or OTHER_RANK.search(line):
            continue
        name = SAME_LABELS.sub("", match[1]).replace(",}", "}").removesuffix("{}")
        with contextlib.suppress(ValueError):
            value = float(match[2])
            if value == value and abs(value) != float("inf"):
                found[name] = value
    return found
