"""The traffic of a replay: a trace or synthetic conversations, cut to size, as a fresh plan for each run."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from marconi_ext.errors import BadInputError
from marconi_ext.replay.schedule import Plan, RecordedPlan, ScriptPlan, with_own_history
from marconi_ext.replay.selection import Selection, select, select_scripts
from marconi_ext.results.folder import TraceInfo
from marconi_ext.traces.problems import Problem
from marconi_ext.traces.request import Request
from marconi_ext.traces.rescript import fold
from marconi_ext.traces.script import VOCABULARY, Script, play
from marconi_ext.traces.source import SYNTHETIC, Reading, open_source, reporting
from marconi_ext.traces.synthetic import scripts

History = Literal["trace", "own"]


def check_history(text: str) -> History:
    """The same as a History. Raises BadInputError for another text."""
    if text not in get_args(History):
        raise BadInputError(f"--history {text}: choose trace or own")
    return cast(History, text)


@dataclass(frozen=True)
class Traffic:
    """info: what it is; plan: makes a plan of it, a new one for each run, as plans remember answers."""

    name: str
    info: TraceInfo
    plan: Callable[[], Plan]


def load_traffic(
    source: str,
    selection: Selection,
    *,
    history: History,
    vocabulary: int | None = None,
    reading: Reading | None = None,
    on_problem: Callable[[Problem], None] | None = None,
    on_request: Callable[[Request], None] | None = None,
) -> Traffic:
    """Read a trace (`FILE`, `FOLDER` or `synthetic:NAME`) and cut it to size. Raises BadInputError.

    history: whether prompts are sent as recorded, or with the server's own answers in them
    vocabulary: token ids from there on are folded into it; None: they are sent as they are
    """
    reading = reading or Reading()
    name, longest = _name(source), selection.max_output_tokens
    if source.startswith(SYNTHETIC):
        if history == "own" and selection.scale is not None:
            raise BadInputError(
                "--scale shortens recorded prompts; with synthetic traffic use --history trace"
            )
        found, requests = _synthetic(source, selection, vocabulary or VOCABULARY, reading.seed)
        info = _info(source, selection, requests)
        own = history == "own"
        return Traffic(name, info, lambda: ScriptPlan(found) if own else RecordedPlan(requests, longest))
    stream = open_source(
        source,
        format=reading.format,
        tokenizer=reading.tokenizer,
        strict=reading.strict,
        seed=reading.seed,
        sessions_per_s=reading.sessions_per_s,
        response_s=reading.response_s,
        on_problem=on_problem,
    )
    requests = select(_told(stream, on_request) if on_request else stream, selection)
    if vocabulary:
        requests = [
            replace(r, input_ids=fold(r.input_ids, vocabulary), output_ids=fold(r.output_ids, vocabulary))
            for r in requests
        ]
    info = _info(source, selection, requests)
    if history == "trace":
        return Traffic(name, info, lambda: RecordedPlan(requests, longest))
    return Traffic(name, info, lambda: with_own_history(requests, vocabulary or VOCABULARY, longest))


def load_traffics(
    sources: Sequence[str],
    selection: Selection,
    *,
    history: History,
    vocabulary: int | None = None,
    reading: Reading | None = None,
) -> list[Traffic]:
    """As load_traffic for each of several sources, with progress shown. Raises BadInputError."""
    with reporting() as progress:
        found = [
            load_traffic(
                source,
                selection,
                history=history,
                vocabulary=vocabulary,
                reading=reading,
                on_problem=progress.problem,
                on_request=progress.one,
            )
            for source in sources
        ]
    if len({traffic.name for traffic in found}) < len(found):
        raise BadInputError("--trace: two of them have the same name; run them one at a time")
    return found


def _synthetic(
    source: str, selection: Selection, vocabulary: int, seed: int
) -> tuple[list[Script], list[Request]]:
    """Scripts that the server will answer, and the requests that they make with drawn answers."""
    name = source.removeprefix(SYNTHETIC)
    found = scripts(name, seed=seed, sessions=selection.sessions, vocabulary=vocabulary)
    if selection.max_output_tokens is not None:
        found = [_shorter(script, selection.max_output_tokens) for script in found]
    requests = select(play(found, seed, vocabulary), replace(selection, sessions=None))
    return select_scripts(found, requests), requests


def _shorter(script: Script, max_output_tokens: int) -> Script:
    turns = (replace(turn, answer_tokens=min(turn.answer_tokens, max_output_tokens)) for turn in script.turns)
    return replace(script, turns=tuple(turns))


def _told(stream: Iterable[Request], on_request: Callable[[Request], None]) -> Iterator[Request]:
    for request in stream:
        on_request(request)
        yield request


def _info(source: str, selection: Selection, requests: list[Request]) -> TraceInfo:
    digest = hashlib.sha256()
    for request in requests:
        digest.update(len(request.input_ids).to_bytes(8, "little"))
        digest.update(request.input_ids.tobytes())
    return TraceInfo(
        source=source,
        requests=len(requests),
        sessions=len({request.session_id for request in requests}),
        prompt_tokens=sum(len(request.input_ids) for request in requests),
        digest=digest.hexdigest()[:16],
        selection=selection.as_json(),
    )


def _name(source: str) -> str:
    """A short name for tables and folders: `synthetic:agent` → `agent`, a file without its endings."""
    if source.startswith(SYNTHETIC):
        return source.removeprefix(SYNTHETIC)
    path = Path(source)
    name = path.name.removesuffix(".gz").rsplit(".", 1)[0] if path.is_file() else path.name
    return path.resolve().parent.name if name in ("sessions", "trace", "data") else name
