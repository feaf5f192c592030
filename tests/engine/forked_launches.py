"""A script: runs SGLang's launcher once for each list of flags, forked off a process that has imported it.

Reads a JSON list of lists from stdin, and writes a JSON list of [exit code, output] to stdout.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import traceback

LIMIT_S = 120  # a launch that isn't refused would serve for ever


def launch(flags: list[str], output: int) -> None:
    """Never returns: ends the process with the launcher's exit code."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.alarm(LIMIT_S)
    sys.argv = ["sglang.launch_server", *flags]
    code = 0
    try:
        runpy.run_module("sglang.launch_server", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import sglang.srt.server_args  # noqa: F401  the greater part of a start

    results = []
    for wanted in json.load(sys.stdin):
        with tempfile.TemporaryFile() as file:
            child = os.fork()
            if not child:
                launch(wanted, file.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            file.seek(0)
            results.append([code, file.read().decode(errors="replace")])
    print(json.dumps(results))
