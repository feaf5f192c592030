"""A prefill engine and a decode engine in two processes, over Mooncake's TCP on one machine."""

from __future__ import annotations

import ctypes.util
import importlib
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from typing import Any

from engine_in_process import Ask, Engine
from speculative_traffic import CONCURRENCY, Case, Pass

from marconi_ext.servers.server import free_port

GIVEN_UP_S = 30  # requests whose decode engine doesn't come
SOME = 12  # requests that are sent to a decode engine which dies after the third


def why_not() -> str | None:
    """Why Mooncake can't run here, or None."""
    try:
        importlib.import_module("mooncake.engine")
    except ImportError as error:
        missing = (
            "" if ctypes.util.find_library("ibverbs") else " (the system's libibverbs.so.1 is needed as well)"
        )
        return f"{error}: pip install mooncake-transfer-engine-non-cuda{missing}"
    return None


NO_MOONCAKE = why_not()


@dataclass(frozen=True)
class Found:
    """passes: tokens and logprobs are the decode engine's, `cached_tokens` and the facts the prefill engine's.
    decode: what the decode engine's extension knew; None: it wasn't live. failed: requests of which nothing came
    because the decode engine had died; after_the_loss: the prefill engine's facts then"""

    passes: list[Pass]
    decode: dict[str, Any] | None
    failed: int
    after_the_loss: dict[str, Any]


class Pair:
    """`start` is a job's `before`, and the pair itself its task. caching: the decode engine has a prefix cache"""

    def __init__(self, cases: Sequence[Case], options: dict[str, object], caching: bool) -> None:
        self.cases, self.port = list(cases), free_port()
        common = {**options, "disaggregation_transfer_backend": "mooncake_tcp"}
        self.prefill_options = {
            **common,
            "disaggregation_mode": "prefill",
            "disaggregation_bootstrap_port": self.port,
            "chunked_prefill_size": 128,
        }
        self.decode_options = {**common, "disaggregation_mode": "decode"}
        if caching:
            self.decode_options["disaggregation_decode_enable_radix_cache"] = True

    def start(self) -> None:
        """Fork the decode engine, and start what introduces the two to each other."""
        os.environ["SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT"] = str(GIVEN_UP_S)
        self._here, there = Pipe()
        self._child = os.fork()
        if not self._child:
            try:
                self._decode(there)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        there.close()
        from sglang.srt.disaggregation.mooncake import MooncakeKVBootstrapServer

        self._introduces = MooncakeKVBootstrapServer("127.0.0.1", self.port)

    def _decode(self, pipe: Any) -> None:
        engine = Engine(self.decode_options)
        pipe.send("ready")
        while (asks := pipe.recv()) is not None:
            if len(asks) == SOME:
                engine.ask(asks[:3], 3)
                os._exit(0)
            pipe.send((engine.ask(asks, CONCURRENCY), engine.marconi()))

    def __call__(self, engine: Engine) -> Found:
        assert self._here.recv() == "ready"
        passes, room = [], 1
        for _ in range(2):
            asks = [self._meeting(case.ask, room + n) for n, case in enumerate(self.cases)]
            room += len(asks)
            self._here.send(asks)
            prefilled = engine.ask(asks, CONCURRENCY)
            decoded, decode = self._here.recv()
            answers = [
                replace(answer, cached_tokens=before.cached_tokens)
                for answer, before in zip(decoded, prefilled, strict=True)
            ]
            passes.append(Pass(answers, engine.marconi(), 0.0))
        asks = [self._meeting(case.ask, room + n) for n, case in enumerate(self.cases[:SOME])]
        self._here.send(asks)
        lost = engine.ask(asks, SOME)
        return Found(passes, decode, sum(not said.output_ids for said in lost), engine.marconi())

    def _meeting(self, ask: Ask, room: int) -> Ask:
        fields = {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.port, "bootstrap_room": room}
        return replace(ask, fields=fields)
