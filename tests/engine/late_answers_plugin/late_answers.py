"""An SGLang plugin for tests: while a file exists, each state inside an answer is said to be of one token more.

Tests must see that.
"""

import os
from pathlib import Path


def register() -> None:
    from sglang_hooks.radix.component import MarconiMambaComponent

    sign, save = Path(os.environ["LATE_ANSWERS_SIGN"]), MarconiMambaComponent.save_inside_answer

    def late(self, req, pending):
        pending.position_tokens += sign.exists()
        return save(self, req, pending)

    MarconiMambaComponent.save_inside_answer = late
