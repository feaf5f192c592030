"""Keeps the most valuable inner prefixes in a file, for `marconi warm` after the next start.

Only where `--marconi-remember FILE` asks for it, as the file holds token ids. An inner prefix is one from which at
least two continuations are held: what a single conversation has said isn't written.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.runtime_context import get_parallel

from marconi_ext.policies.table.tree_rows import row_of

from ..observe.tree_dump import scores_by_row
from ..radix.node_states import holds_state

if TYPE_CHECKING:
    from marconi_ext.config import MarconiConfig

    from ..radix.cache import MarconiRadixCache

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 30.0


class ServerMemory:
    """path: the file of this data-parallel rank; states: how many prefixes at most"""

    def __init__(self, cache: MarconiRadixCache, path: Path, states: int) -> None:
        self._cache, self._path, self._states = cache, path, states
        self._due_s = time.monotonic() + WRITE_EVERY_S
        self._written: list[int] = []

    def write_if_due(self) -> None:
        """Write, unless that was done lately or nothing has changed. Called after every batch and while idle."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + WRITE_EVERY_S
        found = self.prefixes()
        nodes = [one.pop("node") for one in found]
        if not found or nodes == self._written:
            return  # an emptied cache doesn't wipe what was learned
        self._written = nodes
        try:
            self._write("".join(json.dumps(one) + "\n" for one in found))
        except OSError as error:
            logger.warning("marconi-ext: --marconi-remember %s: %s", self._path, error.strerror)

    def prefixes(self) -> list[dict[str, Any]]:
        """The most valuable ones, shallow first, as `marconi warm` reads them."""
        runtime, records = self._cache.mamba.runtime, self._cache.mamba.records
        scores = scores_by_row(runtime)
        inner = [
            row
            for row in scores
            if (node := records.node(row)) is not None and holds_state(node) and len(node.children) > 1
        ]
        best = sorted(inner, key=lambda row: (-scores[row], row))[: self._states]
        return [self._describe(row) for row in sorted(best, key=lambda row: (runtime.table.depth[row], row))]

    def _describe(self, row: int) -> dict[str, Any]:
        records = self._cache.mamba.records
        node = records.node(row)
        path = records.path(node)
        tokens = [int(token) for above in path for token in above.key.raw_token_ids()]
        key = node.key
        namespace = {"extra_key": key.extra_key, "cache_salt": key.cache_salt}
        given = {name: value for name, value in namespace.items() if value is not None}
        assert row_of(node) == row
        return {"node": node.id, "input_ids": tokens, **given}

    def _write(self, text: str) -> None:
        beside = self._path.with_name(self._path.name + ".new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        beside.replace(self._path)


def remember(cache: MarconiRadixCache, config: MarconiConfig) -> ServerMemory | None:
    """What `--marconi-remember` asks for, on the first tensor- and pipeline-parallel rank; a data-parallel rank above 0
    adds its number to the file's name."""
    if config.remember is None:
        return None
    parallel = get_parallel()
    if parallel.tp_rank or parallel.pp_rank:
        return None
    path, replica = Path(config.remember).expanduser(), parallel.dp_rank or 0
    return ServerMemory(
        cache, path.with_name(f"{path.name}.{replica}") if replica else path, config.remember_states
    )
