"""The `marconi` command as a user calls it, inside this process: starting Python takes longer than most commands.

That the installed command and `python -m marconi_ext` are the same is tests/test_cli.py's to show; what is
interrupted or drawn on a terminal runs as a process of its own, by COMMAND.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

from marconi_ext.cli import main

COMMAND = (sys.executable, "-c", "from marconi_ext.cli import main; main()")


def marconi(
    *arguments: str | Path, columns: int = 120, cwd: Path | None = None, **environment: str
) -> CompletedProcess[str]:
    """Run a command; what it returned, and what it wrote to stdout and stderr.

    columns: how wide the console is; environment: variables set while it runs. An exception that
    the command doesn't turn into a message comes out of here, so a test never takes it for one.
    """
    given = ["marconi", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    surroundings = _surroundings(given, {"COLUMNS": str(columns), **environment}, cwd)
    with surroundings, redirect_stdout(out), redirect_stderr(err):
        code = _exit_code()
    return CompletedProcess(given, code, out.getvalue(), err.getvalue())


def _exit_code() -> int:
    try:
        main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


@contextmanager
def _surroundings(given: list[str], environment: dict[str, str], cwd: Path | None) -> Iterator[None]:
    """sys.argv, variables and the working directory of a command, put back after it."""
    before = sys.argv, {name: os.environ.get(name) for name in environment}, Path.cwd()
    try:
        sys.argv = given
        os.environ.update(environment)
        if cwd is not None:
            os.chdir(cwd)
        yield
    finally:
        sys.argv = before[0]
        for name, value in before[1].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.chdir(before[2])
