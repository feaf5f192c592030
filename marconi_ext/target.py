"""What a running server is: which endpoints it has, its model, its page size, how long prompts may be."""

from dataclasses import dataclass
from pathlib import Path

import httpx

from marconi_ext.engine_options import ModelFacts
from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.http_client import direct_client

ENDPOINTS = ("generate", "completions", "chat")
ASK_S = 30.0


@dataclass(frozen=True)
class Target:
    """A server that answers.

    sglang: whether it has SGLang's own endpoints; model: the name that it serves under
    page_size: of its KV cache, 1 where it doesn't say; extended: whether the extension is live
    vocabulary: number of token ids, None if its model's folder isn't on this machine
    context_tokens: of prompt and answer together, None if it doesn't say
    """

    url: str
    sglang: bool
    model: str
    page_size: int = 1
    extended: bool = False
    vocabulary: int | None = None
    context_tokens: int | None = None
    version: str | None = None


def look_at(url: str) -> Target:
    """Ask a server what it is. Raises BadInputError for no URL, CheckFailedError where nobody answers."""
    if not url.startswith(("http://", "https://")):
        raise BadInputError(f"--url {url}: expected http://HOST:PORT")
    url = url.rstrip("/").removesuffix("/v1")
    try:
        with direct_client(url, timeout_s=ASK_S) as http:
            models, info = _json(http, "/v1/models"), _json(http, "/server_info")
    except httpx.HTTPError as error:
        raise CheckFailedError(
            f"--url {url}: nobody answers there ({error or type(error).__name__})"
        ) from None
    served = (models.get("data") or [{}])[0]
    states = info.get("internal_states") or [{}]
    folder = Path(str(info.get("model_path") or "")).expanduser()
    facts = ModelFacts(folder) if (folder / "config.json").is_file() else None
    context = served.get("max_model_len") or info.get("context_length") or (facts and facts.context_tokens)
    return Target(
        url=url,
        sglang=bool(info),
        model=str(served.get("id") or info.get("served_model_name") or "default"),
        page_size=int(info.get("page_size") or 1),
        extended=bool(states[0].get("marconi")),
        vocabulary=facts.vocabulary if facts else None,
        context_tokens=int(context) if context else None,
        version=info.get("version"),
    )


def choose_endpoint(wanted: str, target: Target) -> str:
    """`auto` is token ids where the server takes them. Raises BadInputError for an unknown one."""
    if wanted == "auto":
        return "generate" if target.sglang else "completions"
    if wanted not in ENDPOINTS:
        raise BadInputError(f"--endpoint {wanted}: choose from auto, {', '.join(ENDPOINTS)}")
    return wanted


def flush(target: Target) -> None:
    """Empty the server's prefix cache. Raises CheckFailedError if it doesn't."""
    try:
        with direct_client(target.url, timeout_s=ASK_S) as http:
            answer = http.post("/flush_cache")
    except httpx.HTTPError as error:
        raise CheckFailedError(f"--flush: {target.url} didn't answer ({error})") from None
    if answer.status_code != 200:
        raise CheckFailedError(f"--flush: the server refused: {answer.text.strip()[:200]}")


def _json(http: httpx.Client, path: str) -> dict:
    """The JSON object of a page; empty where the server has no such page."""
    answer = http.get(path)
    try:
        found = answer.json() if answer.status_code == 200 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
