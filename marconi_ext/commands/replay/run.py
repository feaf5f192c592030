"""`marconi replay`: looks at a server, plays traffic against it into a results folder, and says what came of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marconi_ext.commands.replay.show import WIDTH, print_summary
from marconi_ext.output import tables, write_json
from marconi_ext.replay.client import GenerateClient, StreamingClient
from marconi_ext.replay.openai_client import ChatClient, CompletionsClient
from marconi_ext.replay.outcome import timing
from marconi_ext.replay.player import play
from marconi_ext.replay.progress import ReplayProgress
from marconi_ext.replay.prompt_text import PromptText
from marconi_ext.replay.selection import Selection
from marconi_ext.replay.sender import Pacing
from marconi_ext.replay.target import Target, choose_endpoint, flush, look_at
from marconi_ext.replay.traffic import History, Traffic, load_traffics
from marconi_ext.results.folder import ArmInfo, ResultsFolder, RunInfo, Summary, arm_folder
from marconi_ext.results.provenance import provenance
from marconi_ext.results.run_folder import make_folder, now
from marconi_ext.traces.source import Reading


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What to replay against which server.

    endpoint: one of target.ENDPOINTS or auto; model: its name for OpenAI endpoints, None to ask for it
    api_key: the server's; it appears in no result
    source, selection, reading, vocabulary: the traffic; vocabulary None is the model's
    exact_length: ask OpenAI endpoints for answers of the recorded length
    timeout_s: for a whole answer; flush: empty the server's cache first; watch_s: see player.play
    folder: for the results; label: the server's name in them
    """

    url: str
    source: str
    endpoint: str = "auto"
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    history: History = "trace"
    pacing: Pacing
    selection: Selection
    reading: Reading
    vocabulary: int | None = None
    exact_length: bool = True
    timeout_s: float = 300.0
    flush: bool = False
    watch_s: float = 1.0
    folder: Path
    label: str = "server"


def replay_and_print(options: ReplayOptions, json: Path | None = None) -> Summary:
    """Nothing is written before the server has answered and the traffic is there.

    Raises CheckFailedError where the server doesn't answer or refuses, BadInputError.
    """
    target = look_at(options.url, options.api_key)
    endpoint = choose_endpoint(options.endpoint, target)
    (traffic,) = load_traffics(
        [options.source],
        options.selection.within(target.context_tokens),
        history=options.history,
        vocabulary=options.vocabulary or (target.vocabulary if endpoint == "generate" else None),
        reading=options.reading,
    )
    client = client_of(options, target, endpoint)
    if options.flush:
        flush(target, options.api_key)
    folder = ResultsFolder(make_folder(options.folder))
    info = run_info(options, target, endpoint, traffic)
    folder.write_run(info)
    plan = traffic.plan()
    with ReplayProgress() as progress:
        progress.open_bar(traffic.name, len(plan.items))
        summary = play(
            plan,
            client,
            options.pacing,
            folder.repeat(info.arms[0], 0),
            url=target.url,
            api_key=options.api_key,
            watch_s=options.watch_s,
            page_size=target.page_size,
            on_record=lambda record, live: progress.record(record, live.open_requests),
        ).summary
    info = info.model_copy(update={"finished": not summary.error, "error": summary.error})
    folder.write_run(info)
    console = tables(json, WIDTH)
    print_summary(console, traffic.name, summary)
    console.print(f"results: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    if json:
        both = {"run": info, "summary": summary}
        write_json(json, {name: model.model_dump(mode="json") for name, model in both.items()})
    return summary


def client_of(options: ReplayOptions, target: Target, endpoint: str) -> StreamingClient:
    """The client for an endpoint. Raises BadInputError for a tokenizer that isn't there."""
    connection: Any = {"timeout_s": options.timeout_s, "api_key": options.api_key}
    if endpoint == "generate":
        return GenerateClient(target.url, **connection)
    return (ChatClient if endpoint == "chat" else CompletionsClient)(
        target.url,
        model=options.model or target.model,
        text=PromptText(options.reading.tokenizer),
        exact_length=options.exact_length,
        **connection,
    )


def run_info(options: ReplayOptions, target: Target, endpoint: str, traffic: Traffic) -> RunInfo:
    """run.json, before the run."""
    arm = ArmInfo(
        name=options.label,
        folder=arm_folder(options.label),
        meaning=f"{target.url}, {endpoint}",
        status_line="the extension is live (/server_info)" if target.extended else None,
        page_size=target.page_size,
    )
    return RunInfo(
        created=now(),
        title=traffic.name,
        provenance=provenance(options.reading.seed),
        model={"name": target.model, "server_version": target.version, "endpoint": endpoint},
        trace=traffic.info,
        timing=timing(options.pacing, options.history),
        arms=[arm],
        repeats=1,
        order=[(options.label, 0)],
    )
