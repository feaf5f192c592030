"""`read_trace`: any trace file or folder as one stream of requests, its format found by itself."""

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from marconi_ext.traces import few_shot, lmcache, marconi_jsonl, mooncake, sessions, toolbench
from marconi_ext.traces.files import READ_ERRORS, open_binary, why_unreadable
from marconi_ext.traces.problems import Problem, Problems, TraceError
from marconi_ext.traces.request import Request
from marconi_ext.traces.text import load_tokenizer
from marconi_ext.traces.timeline import Arrivals, place

# format -> fields that tell it, in order of preference where a folder holds several
SIGNS: dict[str, tuple[str, ...]] = {
    "marconi": ("input_tokens", "output_tokens"),
    "mooncake": ("hash_ids", "input_length"),
    "messages": ("messages",),
    "tau_bench": ("traj",),
    "mt_bench_101": ("history",),
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
}
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SNIFFED_LINES = 100  # broken lines at the top don't hide a format, but a file of garbage ends soon
SNIFFED_BYTES = 64 * 2**20


def read_trace(
    path: str | Path,
    *,
    format: str = "auto",
    tokenizer: str = "tekken",
    strict: bool = False,
    limit: int | None = None,
    arrivals: Arrivals | None = None,
    on_problem: Callable[[Problem], None] | None = None,
) -> Iterator[Request]:
    """Yield the requests of a trace file, or of a folder of files of one format.

    format: one of FORMATS; tokenizer: 'tekken' or a Hugging Face folder, for traces of text
    strict: refuse a broken line instead of skipping it; limit: stop after so many requests
    arrivals: draws for traces without times; on_problem: called for each skipped record (else logged)

    The flat formats (marconi, mooncake) keep the file's order; sessions are merged in time order.
    Raises TraceError: no such file, unknown format, a broken line (strict), or no request at all.
    """
    path = Path(path)
    if format not in FORMATS:
        raise TraceError(f"--format {format}: not one of {', '.join(FORMATS)}")
    problems = Problems(strict=strict, on_problem=on_problem)
    files = [path] if path.is_file() else _files_below(path)
    if not files:
        raise TraceError(f"--trace {path}: no trace file there (looked for {', '.join(SUFFIXES)})")
    format, files = _choose(path, files, ALIASES.get(format, format))
    stream = _stream(format, files, problems, tokenizer, arrivals or Arrivals())
    return _never_empty(islice(stream, limit), path, problems)


def _stream(
    format: str, files: list[Path], problems: Problems, tokenizer: str, arrivals: Arrivals
) -> Iterator[Request]:
    if format in FLAT:
        return chain.from_iterable(FLAT[format](file, problems) for file in files)
    text = load_tokenizer(tokenizer)
    if format == "bbh_fewshot":
        found = few_shot.read(files, problems, text, arrivals.seed)
    elif format == "lmcache":
        found = lmcache.read(files, problems, text)
    elif format == "toolbench_dfs":
        found = toolbench.read(files, problems, text)
    else:
        found = chain.from_iterable(PER_FILE[format](file, problems, text) for file in files)
    return place(found, arrivals)


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


def _choose(path: Path, files: list[Path], format: str) -> tuple[str, list[Path]]:
    """The format and the files that have it. A folder may hold several: the first in SIGNS is taken."""
    if format != "auto" and len(files) == 1:
        return format, files
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(sniff(file) or "", []).append(file)
    if format != "auto":
        if format not in found:
            raise TraceError(f"--format {format}: no file of that format in {path}")
        return format, found[format]
    for known in SIGNS:
        if known in found:
            return known, found[known]
    _refuse_unreadable(path)
    raise TraceError(f"{path}: no known trace format; name one with --format ({', '.join(SIGNS)})")


def sniff(path: Path) -> str | None:
    """The format of one file by the fields of its first record that can be read, or None."""
    try:
        with open_binary(path) as file:
            for raw in islice(file, SNIFFED_LINES):
                record = _decode(raw)
                if isinstance(record, dict):
                    return _by_fields(record)
                if isinstance(record, list):
                    break
        with open_binary(path) as file:  # one JSON value over many lines
            document = _decode(file.read(SNIFFED_BYTES))
    except READ_ERRORS:
        return None
    if isinstance(document, list) and document:
        document = document[0]
    return _by_fields(document) if isinstance(document, dict) else None


def _decode(raw: bytes):
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _by_fields(record: dict) -> str | None:
    return next((name for name, signs in SIGNS.items() if all(sign in record for sign in signs)), None)
