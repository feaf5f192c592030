"""What a running server is: which endpoints it has, its model, its page size, how long prompts may be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.servers.engine_options import ModelFacts
from marconi_ext.servers.http_client import direct_client

ENDPOINTS = ("generate", "completions", "chat")
ASK_S = 30.0
MODELS, INFO = "/v1/models", "/server_info"
REFUSED = (401, 403)


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


def look_at(url: str, api_key: str | None = None) -> Target:
    """Ask a server what it is. Raises BadInputError for no URL, CheckFailedError where nobody answers or refuses."""
    if not url.startswith(("http://", "https://")):
        raise BadInputError(f"--url {url}: expected http://HOST:PORT")
    url = url.rstrip("/").removesuffix("/v1")
    try:
        with direct_client(url, timeout_s=ASK_S, api_key=api_key) as http:
            pages = {path: http.get(path) for path in (MODELS, INFO)}
    except BadInputError:
        raise
    except (ValueError, httpx.InvalidURL) as error:
        raise BadInputError(f"--url {url}: {error}; expected http://HOST:PORT") from None
    except httpx.HTTPError as error:
        raise CheckFailedError(
            f"--url {url}: nobody answers there ({error or type(error).__name__})"
        ) from None
    for path, page in pages.items():
        # Behind a gateway only /server_info may be out of reach, as good as missing.
        if page.status_code in REFUSED and (path == MODELS or pages[MODELS].status_code != 200):
            fix = "it doesn't take this --api-key" if api_key else "give the server's key with --api-key"
            raise CheckFailedError(f"--url {url}: HTTP {page.status_code} for {path}; {fix}")
    models, info = _parsed(_Models, url, pages[MODELS]), _parsed(_Info, url, pages[INFO])
    if not any(page.status_code == 200 and _is_json_object(page) for page in pages.values()):
        told = ", ".join(f"HTTP {page.status_code} for {path}" for path, page in pages.items())
        raise CheckFailedError(f"--url {url}: neither an SGLang nor an OpenAI server answers there ({told})")
    served = models.data[0] if models.data else _Served(id=None, max_model_len=None)
    facts = _facts(info.model_path)
    return Target(
        url=url,
        sglang=bool(info.model_fields_set or info.model_extra),
        model=served.id or info.served_model_name or "default",
        page_size=info.page_size or 1,
        extended=bool(info.internal_states and info.internal_states[0].marconi),
        vocabulary=facts.vocabulary if facts else None,
        context_tokens=served.max_model_len
        or info.context_length
        or (facts.context_tokens if facts else None),
        version=info.version,
    )


def check_endpoint(wanted: str) -> None:
    """Raise BadInputError for an unknown one."""
    if wanted not in ("auto", *ENDPOINTS):
        raise BadInputError(f"--endpoint {wanted}: choose from auto, {', '.join(ENDPOINTS)}")


def choose_endpoint(wanted: str, target: Target) -> str:
    """`auto` is token ids where the server takes them."""
    if wanted == "auto":
        return "generate" if target.sglang else "completions"
    return wanted


def flush(target: Target, api_key: str | None = None) -> None:
    """Empty the server's prefix cache. Raises CheckFailedError if it doesn't."""
    try:
        with direct_client(target.url, timeout_s=ASK_S, api_key=api_key) as http:
            answer = http.post("/flush_cache")
    except httpx.HTTPError as error:
        raise CheckFailedError(f"--flush: {target.url} didn't answer ({error})") from None
    if answer.status_code != 200:
        raise CheckFailedError(f"--flush: the server refused: {answer.text.strip()[:200]}")


class _Served(BaseModel):
    """A model of /v1/models."""

    id: str | None = None
    max_model_len: int | None = Field(None, ge=0)


class _Models(BaseModel):
    data: list[_Served] | None = None


class _State(BaseModel):
    marconi: dict[str, Any] | None = None


class _Info(BaseModel):
    """What we read of /server_info."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_path: str | None = None
    served_model_name: str | None = None
    context_length: int | None = Field(None, ge=0)
    page_size: int | None = Field(None, ge=0)
    version: str | None = None
    internal_states: list[_State] | None = None


Page = TypeVar("Page", bound=BaseModel)


def _parsed(model: type[Page], url: str, answer: httpx.Response) -> Page:
    """A page's JSON object; an empty one where the server has no such page. Raises CheckFailedError."""
    try:
        found = answer.json() if answer.status_code == 200 else {}
    except ValueError:
        found = {}
    try:
        return model.model_validate(found if isinstance(found, dict) else {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckFailedError(
            f"--url {url}: {answer.url.path} has an odd {where} ({first['msg']}); is this an SGLang or OpenAI server?"
        ) from None


def _is_json_object(answer: httpx.Response) -> bool:
    try:
        return isinstance(answer.json(), dict)
    except ValueError:
        return False


def _facts(folder: str | None) -> ModelFacts | None:
    """Of the server's model, if its folder is on this machine and can be read."""
    if not folder:
        return None
    try:
        path = Path(folder).expanduser()
        return ModelFacts(path) if (path / "config.json").is_file() else None
    except (BadInputError, OSError, RuntimeError):
        return None
