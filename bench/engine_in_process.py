"""SGLang's real scheduler, model and event loop without a server: one forked process an engine, one import for all.

`with Engines() as engines: engines.run(Job(...))`. The parent imports SGLang once; each job is a fork of it that makes
a scheduler, feeds its event loop and takes what it sends to the tokenizer. A third of what a server costs.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import other_ranks

LIMIT_S = 900  # on a busy machine
OPTIONS: dict[str, object] = {
    "max_total_tokens": 60_000,
    "max_mamba_cache_size": 1_000,
    "max_running_requests": 16,
    "skip_tokenizer_init": True,
    "mem_fraction_static": 0.95,  # other processes take memory meanwhile
    "log_level": "warning",
}


@dataclass(frozen=True)
class Ask:
    """A greedy request. stops: tokens that end it; none: its length does. sampling: further parameters. fields:
    further ones of SGLang's request
    abort_after: steps of the scheduler after which it is aborted, if it hasn't ended; None: never"""

    prompt: list[int]
    answer_tokens: int
    stops: tuple[int, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    abort_after: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """output_ids and their logprobs; cached_tokens of the prompt"""

    output_ids: list[int]
    logprobs: list[float]
    cached_tokens: int


@dataclass(frozen=True)
class Job:
    """What one engine does.

    options: as keyword arguments of `sglang.Engine`, beside `OPTIONS`
    task: called with the `Engine` in its process; what it returns is pickled. A function of a module, so that it can be
    before: called before the scheduler is made
    limit_s: after which the engine is ended
    """

    options: Mapping[str, Any]
    task: Callable[[Engine], Any]
    before: Callable[[], None] | None = None
    limit_s: int = LIMIT_S


STORAGE: dict[str, object] = {
    "enable_marconi": True,
    "page_size": 16,
    "max_total_tokens": 30_000,
    "max_mamba_cache_size": 200,
    "enable_hierarchical_cache": True,
    "hicache_ratio": 2,
    "hicache_write_policy": "write_through",
    "hicache_storage_backend": "file",
    "hicache_storage_prefetch_policy": "wait_complete",
    "hicache_storage_backend_extra_config": '{"prefetch_threshold": 32}',
}
"""Options of an engine whose states go through host memory to storage: see `StorageFolder`."""


@dataclass(frozen=True)
class StorageFolder:
    """A job's `before`: SGLang's `file` storage lies in a folder."""

    folder: Path

    def __call__(self) -> None:
        os.environ["SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"] = str(self.folder)


class Engines:
    """A process that has imported SGLang, to fork engines off."""

    def __enter__(self) -> Engines:
        from marconi_ext.servers.engine_options import environment

        env = {
            **environment(cpu=True),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # the tasks' modules
            "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._parent = subprocess.Popen([sys.executable, __file__], env=env, text=True, **pipes)
        return self

    def __exit__(self, *_error: object) -> None:
        self._parent.stdin.close()
        self._parent.wait()

    def run(self, job: Job) -> Any:
        """What the job's task returns. Raises: AssertionError with the end of the engine's log."""
        with tempfile.TemporaryDirectory() as folder:
            task, result, log = (Path(folder) / name for name in ("job", "result", "log"))
            task.write_bytes(pickle.dumps(job))
            print(task, result, log, file=self._parent.stdin, flush=True)
            code = self._parent.stdout.readline().strip()
            text = log.read_text(errors="replace") if log.exists() else ""
            assert code == "0" and "checkpoints dropped" not in text, f"{code}: {text[-6_000:]}"
            return pickle.loads(result.read_bytes())


class Engine:
    """One scheduler with its model, driven request by request."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        from sglang.srt.arg_groups.lora_hook import check_lora_server_args
        from sglang.srt.plugins import load_plugins
        from sglang.srt.server_args import PortArgs, prepare_server_args

        from marconi_ext.servers.engine_options import CPU_OPTIONS, to_flags

        load_plugins()
        arguments = prepare_server_args(to_flags({**CPU_OPTIONS, **OPTIONS, **options}))
        check_lora_server_args(arguments)
        ports = PortArgs.init_new(arguments)
        self.ranks = arguments.tp_size * arguments.pp_size
        if self.ranks > 1:
            other_ranks.fork(self.ranks, lambda rank: _scheduler(arguments, ports, rank).run_event_loop())
        self.scheduler = _scheduler(arguments, ports, 0)
        self._number = 0
        if self.ranks > 1:
            self._loop = other_ranks.FirstRank(self)
        else:
            self.scheduler.ingest_requests = self._feed
        channels = self.scheduler.ipc_channels
        channels.send_to_detokenizer.send_output = self._take
        if channels.send_to_tokenizer is not None:
            channels.send_to_tokenizer.send_output = self._take
        self.aborted = 0
        self.on_answer: Callable[[], object] = lambda: None

    def ask(self, requests: Sequence[Ask], concurrency: int = 1) -> list[Said]:
        """The answers to the requests, `concurrency` of which are open at a time; `aborted`: how many were cut off."""
        self._answers: dict[str, Said] = {}
        self._to_abort: dict[str, int] = {}  # steps left
        self.aborted = 0
        self._waiting, self._names = list(requests)[::-1], []
        self._concurrency = concurrency
        self.scheduler.gracefully_exit = False
        if self.ranks > 1:
            self._loop.run()
        else:
            self.scheduler.run_event_loop()
        return [self._answers[name] for name in self._names]

    def marconi(self) -> dict[str, Any] | None:
        """The extension's section of /server_info; None where it isn't live."""
        from sglang_hooks.process_state import live
        from sglang_hooks.status import report

        state = live()
        return None if state is None else report(state)

    def acceptance(self) -> float:
        """Tokens that a verify gave a request, on average since the start, as SGLang counts them."""
        metrics = self.scheduler.metrics_reporter
        return metrics.spec_total_num_accept_tokens / max(1, metrics.spec_total_num_forward_ct)

    def due(self) -> list[Any]:
        """What is to be sent now, in SGLang's terms."""
        due = []
        while self._waiting and len(self._names) - len(self._answers) < self._concurrency:
            due.append(self._request(self._waiting.pop()))
        return due

    @property
    def all_answered(self) -> bool:
        return not self._waiting and len(self._names) == len(self._answers)

    def _feed(self, *_args: Any, **_kwargs: Any) -> list[Any]:
        self._abort()
        for request in self.due():
            self.scheduler.handle_generate_request(request)
        open_requests, scheduler = len(self._names) - len(self._answers), self.scheduler
        if not open_requests and scheduler.last_batch is None and scheduler.running_batch.is_empty():
            scheduler.gracefully_exit = True
        return []

    def _abort(self) -> None:
        from sglang.srt.managers.io_struct import AbortReq

        for name, steps in list(self._to_abort.items()):
            self._to_abort[name] = steps - 1
            if steps == 0 and name not in self._answers:
                self.scheduler.abort_request(AbortReq(rid=name))

    def _request(self, request: Ask) -> Any:
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        self._number += 1
        self._names.append(f"{self._number:06d}")  # SGLang aborts all whose names begin alike
        if request.abort_after is not None:
            self._to_abort[self._names[-1]] = request.abort_after
        sampling = SamplingParams(
            temperature=0,
            max_new_tokens=request.answer_tokens,
            ignore_eos=not request.stops,
            stop_token_ids=list(request.stops) or None,
            no_stop_trim=True,
            **request.sampling,
        )
        sampling.normalize(None)
        return TokenizedGenerateReqInput(
            rid=self._names[-1],
            input_text=None,
            input_ids=array("q", request.prompt),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=sampling,
            return_logprob=True,
            logprob_start_len=len(request.prompt) - 1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
            **request.fields,
        )

    def _take(self, output: Any, *_args: Any) -> None:
        if type(output).__name__ == "AbortReq":  # it was still waiting
            self._answers[output.rid] = Said([], [], 0)
            self.aborted += 1
            return
        for number, name in enumerate(getattr(output, "rids", None) or ()):
            if output.finished_reasons[number] is not None:
                self.aborted += output.finished_reasons[number]["type"] == "abort"
                self._answers[name] = Said(
                    [int(token) for token in output.output_ids[number]],
                    [float(value) for value in output.output_token_logprobs_val[number] or ()],
                    int(output.cached_tokens[number]),
                )
                self.on_answer()


def _scheduler(arguments: Any, ports: Any, rank: int) -> Any:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.runtime_context import SpawnRanks, publish

    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=rank, dp_rank=None, gpu_id=rank))
    return Scheduler(arguments, ports)


def serve() -> None:
    """Import what every engine needs, then run jobs as they are named on stdin: JOB RESULT LOG."""
    for module in ("managers.scheduler", "model_executor.model_runner", "models.registry", "server_args"):
        importlib.import_module(f"sglang.srt.{module}")
    for line in sys.stdin:
        job, result, log = line.split()
        child = os.fork()
        if not child:
            _run(job, result, log)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(job_file: str, result: str, log: str) -> None:
    """Never returns."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        job: Job = pickle.loads(Path(job_file).read_bytes())
        signal.alarm(job.limit_s)
        if job.before is not None:
            job.before()
        Path(result).write_bytes(pickle.dumps(job.task(Engine(job.options))))
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    other_ranks.end()
    os._exit(code)


if __name__ == "__main__":
    from engine_in_process import serve as serve_under_its_name  # so that pickles name the module

    serve_under_its_name()
