"""`python -m sglang.launch_server` with its processes forked: they don't import SGLang again, which takes 15 s each.

For servers on the CPU platform, where nothing that a fork can't take along runs before they start. All else is as
SGLang has it. Takes the same flags.
"""

from __future__ import annotations

import multiprocessing
import runpy

LAUNCHER = "sglang.launch_server"


def main() -> None:
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler  # noqa: F401  what the children would import

    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_args, **_kwargs: None  # SGLang would have them spawned
    runpy.run_module(LAUNCHER, run_name="__main__")


if __name__ == "__main__":
    main()
