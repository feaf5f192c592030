"""`read_trace`: any trace file or folder as one stream of requests, its format found by itself."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from marconi_ext import entry_points
from marconi_ext.traces import agents, few_shot, lmcache, marconi_jsonl, mooncake, sessions, toolbench
from marconi_ext.traces.chat_template import find_template
from marconi_ext.traces.files import READ_ERRORS, decoded, open_binary, why_unreadable
from marconi_ext.traces.problems import Problem, Problems, TraceError
from marconi_ext.traces.request import Request
from marconi_ext.traces.templated import Templated
from marconi_ext.traces.text import TextTokenizer, load_tokenizer
from marconi_ext.traces.timeline import Arrivals, Session, place


@dataclass(frozen=True)
class TraceFormat:
    """A trace format of another package: what its entry point in `marconi.traces` names.

    signs: fields of a file's first record that tell it; none: it is read where `--format` names it
    requests: reads a file into requests, in its order; broken records go to `Problems.add`
    sessions: instead, reads a file of text into sessions, which are tokenised and put on one time line
    """

    signs: tuple[str, ...] = ()
    requests: Callable[[Path, Problems], Iterator[Request]] | None = None
    sessions: Callable[[Path, Problems, TextTokenizer], Iterator[Session]] | None = None


# format -> fields that tell it, in order of preference where a folder holds several
SIGNS: dict[str, tuple[str, ...]] = {
    "marconi": ("input_tokens", "output_tokens"),
    "mooncake": ("hash_ids", "input_length"),
    "messages": ("messages",),
    "tau_bench": ("traj",),
    "mt_bench_101": ("history",),
    "swe_agent": ("history",),
    "openhands": ("history",),
    "lmcache": ("input", "output", "timestamp"),
    "bbh_fewshot": ("examples",),
    "toolbench_dfs": ("tree", "answer_generation"),
    "sharegpt": ("conversations",),
    "tau_few_shot": ("messages_display",),
}
ALIASES = {"mini_swe_agent": "messages", "openai": "messages"}
FORMATS = ("auto", *SIGNS, *ALIASES)
FLAT = {"marconi": marconi_jsonl.read, "mooncake": mooncake.read}
PER_FILE = {
    "messages": sessions.read_messages,
    "tau_bench": sessions.read_tau_bench,
    "mt_bench_101": sessions.read_mt_bench,
    "sharegpt": sessions.read_sharegpt,
    "tau_few_shot": sessions.read_display,
    "swe_agent": agents.read_swe_agent,
    "openhands": agents.read_openhands,
}
SUFFIXES = (".jsonl", ".json", ".traj", ".jsonl.gz", ".json.gz")
STANDARD_INPUT = "-"
SNIFFED_LINES = 100  # broken lines at the top don't hide a format, but a file of garbage ends soon
SNIFFED_BYTES = 64 * 2**20
SHOWN_FIELDS = 12


def read_trace(
    path: str | Path,
    *,
    format: str = "auto",
    tokenizer: str = "tekken",
    template: str | None = None,
    strict: bool = False,
    limit: int | None = None,
    arrivals: Arrivals | None = None,
    on_problem: Callable[[Problem], None] | None = None,
) -> Iterator[Request]:
    """Yield the requests of a trace file, of a folder of files of one format, or of standard input (`-`).

    format: one of FORMATS; tokenizer: 'tekken' or a Hugging Face folder, for traces of text
    template: a chat template that writes the conversations, by name; see traces/templated.py
    strict: refuse a broken line instead of skipping it; limit: stop after so many requests
    arrivals: draws for traces without times; on_problem: called for each skipped record (else logged)

    The flat formats (marconi, mooncake) keep the file's order; sessions are merged in time order.
    A folder's files of another format, and sessions without times among others with, are told of as problems.
    Raises TraceError: no such file, unknown format, a broken line (strict), or no request at all.
    """
    if format not in FORMATS and _other(format) is None:
        known = [*FORMATS, *entry_points.names(entry_points.TRACES)]
        raise TraceError(f"--format {format}: not one of {', '.join(known)}")
    if str(path) == STANDARD_INPUT:
        return _read_standard_input(
            format=format,
            tokenizer=tokenizer,
            template=template,
            strict=strict,
            limit=limit,
            arrivals=arrivals,
            on_problem=on_problem,
        )
    path = Path(path)
    problems = Problems(strict=strict, on_problem=on_problem)
    files = [path] if path.is_file() else _files_below(path)
    if not files:
        raise TraceError(f"--trace {path}: no trace file there (looked for {', '.join(SUFFIXES)})")
    format, files = _choose(path, files, ALIASES.get(format, format), problems)
    if template and _has_no_messages(format):
        raise TraceError(f"--template {template}: {path} is {format}, which has no messages to write")
    stream = _stream(format, files, problems, tokenizer, template, arrivals or Arrivals())
    return _never_empty(islice(stream, limit), path, problems)


def _has_no_messages(format: str) -> bool:
    other = None if format in SIGNS else _other(format)
    return format in (*FLAT, "bbh_fewshot") or (other is not None and other.requests is not None)


def _read_standard_input(**options: Any) -> Iterator[Request]:
    """Sessions are sorted and tokenised late, so what comes in is kept in a file meanwhile."""
    with NamedTemporaryFile(suffix=".jsonl") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.flush()
        yield from read_trace(kept.name, **options)


def _stream(
    format: str,
    files: list[Path],
    problems: Problems,
    tokenizer: str,
    template: str | None,
    arrivals: Arrivals,
) -> Iterator[Request]:
    if format in FLAT:
        return chain.from_iterable(FLAT[format](file, problems) for file in files)
    other = None if format in SIGNS else _other(format)
    if other and other.requests:
        return chain.from_iterable(other.requests(file, problems) for file in files)
    text: TextTokenizer = load_tokenizer(tokenizer)
    found: Iterator[Session]
    if template:
        text = Templated(text, find_template(template), arrivals.seed)
    if other and other.sessions:
        found = chain.from_iterable(other.sessions(file, problems, text) for file in files)
    elif format == "bbh_fewshot":
        found = few_shot.read(files, problems, text, arrivals.seed)
    elif format == "lmcache":
        found = lmcache.read(files, problems, text)
    elif format == "toolbench_dfs":
        found = toolbench.read(files, problems, text)
    else:
        found = chain.from_iterable(PER_FILE[format](file, problems, text) for file in files)

    def no_times(session: Session) -> None:
        problems.add(
            str(files[0]), 0, f"session {session.session_id}: an answer has no time; its times are drawn"
        )

    return place(found, arrivals, no_times)


def _never_empty(stream: Iterator[Request], path: Path, problems: Problems) -> Iterator[Request]:
    first = next(stream, None)
    if first is None:
        _refuse_unreadable(path)
        why = f"; first problem: {problems.found[0]}" if problems.found else ""
        raise TraceError(f"{path}: not one request could be read{why}")
    yield first
    yield from stream


def _refuse_unreadable(path: Path) -> None:
    """Say of a file that gave no request what is wrong with the whole of it, where that is the reason."""
    if path.is_file() and (why := why_unreadable(path)):
        raise TraceError(f"{path}: {why}")


def _files_below(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))


def _choose(path: Path, files: list[Path], format: str, problems: Problems) -> tuple[str, list[Path]]:
    """The format and the files that have it. A folder may hold several: the first in SIGNS is taken."""
    if format != "auto" and len(files) == 1:
        return format, files
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(sniff(file) or "", []).append(file)
    if format != "auto" and format not in found:
        raise TraceError(f"--format {format}: no file of that format in {path}")
    chosen: str | None = format
    if format == "auto":
        chosen = next((known for known in (*SIGNS, *filter(None, found)) if known in found), None)
    if chosen is None:
        _refuse_unreadable(path)
        raise TraceError(f"{path}: no known trace format{_fields_found(files[0])}; known are {_signs()}")
    for other in sorted(found.keys() - {chosen, ""}):
        for file in found[other]:
            problems.add(str(file), 0, f"is {other}, not {chosen}: passed over (--format {other} reads it)")
    return chosen, found[chosen]


def _fields_found(file: Path) -> str:
    record = first_record(file)
    if record is None:
        return ": no JSON object in it"
    names = ", ".join(sorted(map(str, record))[:SHOWN_FIELDS])
    return f": its first record has the fields {names}" if names else ": its first record is empty"


def _signs() -> str:
    return "; ".join(f"{name} ({', '.join(signs)})" for name, signs in {**SIGNS, **_others()}.items())


def sniff(path: Path) -> str | None:
    """The format of one file by the fields of its first record that can be read, or None."""
    record = first_record(path)
    return None if record is None else _by_fields(record)


def first_record(path: Path) -> dict | None:
    """The first JSON object of a file of lines, of a list, or of one object over many lines."""
    try:
        with open_binary(path) as file:
            for raw in islice(file, SNIFFED_LINES):
                record = decoded(raw)
                if isinstance(record, dict):
                    return record
                if isinstance(record, list):
                    break
        with open_binary(path) as file:
            document = decoded(file.read(SNIFFED_BYTES))
    except READ_ERRORS:
        return None
    if isinstance(document, list) and document:
        document = document[0]
    return document if isinstance(document, dict) else None


def _by_fields(record: dict) -> str | None:
    for name, signs in SIGNS.items():
        if all(sign in record for sign in signs) and (signs != ("history",) or name == _history(record)):
            return name
    return next((name for name, signs in _others().items() if all(sign in record for sign in signs)), None)


def _other(format: str) -> TraceFormat | None:
    """A format of another package. Raises BadInputError where it can't be used."""
    found = entry_points.load(entry_points.TRACES, format, TraceFormat)
    if found is not None and (found.requests is None) == (found.sessions is None):
        raise TraceError(f"--format {format}: a TraceFormat has either requests or sessions")
    return found


def _others() -> dict[str, tuple[str, ...]]:
    """The signs of other packages' formats."""
    found = {name: _other(name) for name in entry_points.names(entry_points.TRACES) if name not in SIGNS}
    return {name: other.signs for name, other in found.items() if other and other.signs}


def _history(record: dict) -> str:
    """Which of the formats that call their conversation `history` a record has."""
    items = record["history"]
    first = items[0] if isinstance(items, list) and items else None
    if isinstance(first, list) or (isinstance(first, dict) and agents.is_event(first)):
        return "openhands"
    return "swe_agent" if isinstance(first, dict) and "role" in first else "mt_bench_101"
