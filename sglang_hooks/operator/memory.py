"""Keeps the most valuable inner prefixes in a file, for `marconi warm` after the next start.

Only where `--marconi-remember FILE` asks for it, as the file holds token ids. An inner prefix is one from which at
least two continuations are held: what a single conversation has said isn't written.
"""

from __future__ import annotations

import json
import logging
import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from sglang.srt.runtime_context import get_parallel

from ..node_states import holds_state

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

    from marconi_ext.config import MarconiConfig
    from marconi_ext.policies.table.tree_rows import TreeRecords

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 30.0
TURN_S = 0.001  # of the scheduler's time, after a batch
TOKENS_A_STEP = 2_000


class ServerMemory:
    """records: of the cache's tree; path: the file of this data-parallel rank; states: how many prefixes at most
    due_s: when it is begun anew"""

    def __init__(self, records: TreeRecords, path: Path, states: int) -> None:
        self._records, self._path, self._states = records, path, states
        self.due_s = time.monotonic() + WRITE_EVERY_S
        self._written: list[int] = []
        self._steps: Iterator[None] | None = None  # of the file that is being written

    @property
    def is_writing(self) -> bool:
        """Whether a file is begun and not complete."""
        return self._steps is not None

    def write_if_due(self) -> None:
        """Go on with the file, or begin it anew where it is due. Called after every batch and while idle: all at once
        would hold the scheduler for 0.3 s, at 32 prefixes of 20,000 tokens."""
        if self._steps is None:
            if time.monotonic() < self.due_s:
                return
            self.due_s = time.monotonic() + WRITE_EVERY_S
            self._steps = self.write()
        until_s = time.perf_counter() + TURN_S
        try:
            for _ in self._steps:
                if time.perf_counter() >= until_s:
                    return
        except OSError as error:
            logger.warning("marconi-ext: --marconi-remember %s: %s", self._path, error.strerror)
        self._steps = None

    def write(self) -> Iterator[None]:
        """Write the file, as `marconi warm` reads it, in steps of at most `TOKENS_A_STEP` tokens. It is replaced when
        it is complete, and left where nothing has changed: an emptied cache doesn't wipe what was learned."""
        nodes = self._most_valuable()
        ids = [node.id for node in nodes]
        if not nodes or ids == self._written:
            return
        beside = self._path.with_name(self._path.name + ".new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            for node in nodes:
                if self._records.alive(node):  # else it has gone since the last step
                    yield from self._write_line(node, file)
        beside.replace(self._path)
        self._written = ids

    def _most_valuable(self) -> list[UnifiedTreeNode]:
        """Inner prefixes, shallow first."""
        records, runtime = self._records, self._records.runtime
        table = runtime.table
        forked = table.live_rows()
        forked = forked[table.fanout[forked] > 1]
        inner = [
            row
            for row in forked.tolist()
            if (node := records.node(row)) is not None and holds_state(node) and len(node.children) > 1
        ]
        if not inner:
            return []
        scores = runtime.eviction.scores(table, np.array(inner, np.int64), runtime.tick).tolist()
        best = sorted(zip(scores, inner, strict=True), key=lambda one: (-one[0], one[1]))[: self._states]
        shallow_first = sorted((table.depth.item(row), row) for _, row in best)
        return [records.node(row) for _, row in shallow_first]

    def _write_line(self, node: UnifiedTreeNode, file: TextIO) -> Iterator[None]:
        tokens = array("q")
        for above in self._records.path(node):
            tokens.extend(above.key.raw_token_ids())
        namespace = {"extra_key": node.key.extra_key, "cache_salt": node.key.cache_salt}
        given = {name: value for name, value in namespace.items() if value is not None}
        file.write('{"input_ids": [')
        for begin in range(0, len(tokens), TOKENS_A_STEP):
            piece = tokens[begin : begin + TOKENS_A_STEP].tolist()
            file.write((", " if begin else "") + json.dumps(piece)[1:-1])
            yield
        file.write(
            "]"
            + "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in given.items())
            + "}\n"
        )


def remember(records: TreeRecords, config: MarconiConfig) -> ServerMemory | None:
    """What `--marconi-remember` asks for, on the first tensor- and pipeline-parallel rank; a data-parallel rank above 0
    adds its number to the file's name."""
    if config.remember is None:
        return None
    parallel = get_parallel()
    if parallel.tp_rank or parallel.pp_rank:
        return None
    path, replica = Path(config.remember).expanduser(), parallel.dp_rank or 0
    return ServerMemory(
        records, path.with_name(f"{path.name}.{replica}") if replica else path, config.remember_states
    )
