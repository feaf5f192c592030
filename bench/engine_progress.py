"""How far an engine in process is: it counts its answers in a file, which the process that waits for it reads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine_in_process import Engine, Engines, Job
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from marconi_ext.output import stderr_console

SAID_S = 30.0  # between lines of progress where stderr is no terminal


class Ticks:
    """A file that grows by a byte an answer, so that another process can tell how far this one is."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def reset(self) -> None:
        self.file.write_bytes(b"")

    def follow(self, engine: Engine) -> None:
        stream = self.file.open("ab", buffering=0)
        engine.on_answer = lambda: stream.write(b".")

    def count(self) -> int:
        return self.file.stat().st_size


def watched(engines: Engines, job: Job, label: str, ticks: Ticks, total: int) -> Any:
    """Run the job, and show how far it is. Rates begin with the first answer: before it the engine starts."""
    console = stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    ticks.reset()
    first = said = time.monotonic()
    with (
        ThreadPoolExecutor(1) as worker,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task(label, total=total)
        running = worker.submit(engines.run, job)
        while not running.done():
            time.sleep(0.2)
            now, count = time.monotonic(), ticks.count()
            if not count:
                first = said = now
                continue
            rate = count / (now - first)
            text = f"{label}: {rate:.1f} a second, {(total - count) / rate:.0f} s left"
            bar.update(task, completed=count, description=text)
            if not console.is_terminal and now - said > SAID_S:
                console.print(f"{text}, {count} of {total} done", highlight=False)
                said = now
        return running.result()
