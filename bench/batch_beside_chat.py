"""A chat that goes on while batch jobs of documents pass between its turns: what its next turn finds in the cache.

    python bench/batch_beside_chat.py [--documents 32] [--turns 6] [--slots 40] [--json FILE]

One server after another on the CPU platform: stock, the extension, and the extension with a quota. Chats and the batch
have an `extra_key` each. Tokens that the chat's turns prefill beyond their own new ones don't depend on the machine;
times do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from records import records_of, write

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.servers.engine_options import CPU_OPTIONS, environment, to_flags
from marconi_ext.servers.server import Server, ServerSpec

VOCABULARY = 4_096
QUOTAS = '{"chat": {"floor": 0.3}, "batch": {"ceiling": 0.4}}'
ARMS: dict[str, dict[str, Any]] = {
    "stock": {},
    "marconi": {"enable_marconi": True},
    "marconi, with a quota": {"enable_marconi": True, "marconi_quotas": QUOTAS},
}


class Client:
    """One server's /generate."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=300, trust_env=False)

    def ask(self, prompt: list[int], key: str, answer_tokens: int) -> tuple[list[int], int, float]:
        """(answer, tokens reused, seconds to the first token)"""
        sampling = {"temperature": 0, "max_new_tokens": answer_tokens, "ignore_eos": True}
        body = {"input_ids": prompt, "extra_key": key, "sampling_params": sampling, "stream": True}
        sent_s, first_s, last = time.perf_counter(), 0.0, ""
        with self._http.stream("POST", "/generate", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    first_s, last = first_s or time.perf_counter(), line
        found = json.loads(last.removeprefix("data: "))
        return found["output_ids"], found["meta_info"]["cached_tokens"], first_s - sent_s


def play(client: Client, turns: int, documents: int, chats: int) -> list[dict[str, Any]]:
    """Chats in turn, a batch between turns. Returns: of each later turn of a chat, what it reused and waited for."""
    rng = np.random.default_rng(0)
    draw = lambda tokens: rng.integers(0, VOCABULARY, tokens).tolist()  # noqa: E731
    system = draw(800)
    histories = [[*system, *draw(100)] for _ in range(chats)]
    question = draw(200)
    rows = []
    for turn in range(turns):
        for number, history in enumerate(histories):
            could_reuse = 0 if turn == 0 else len(history) - 1
            prompt = history if turn == 0 else [*history, *draw(40)]
            answer, cached, ttft_s = client.ask(prompt, "chat", 12)
            if turn:
                rows.append(
                    {
                        "turn": turn,
                        "chat": number,
                        "again": max(0, could_reuse - cached),
                        "ttft_ms": 1e3 * ttft_s,
                    }
                )
            histories[number] = [*prompt, *answer]
        for _ in range(documents):
            client.ask([*question, *draw(int(rng.integers(200, 600)))], "batch", 4)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--slots", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=40_000, help="of the KV pool")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", ToyModel(chunk_size=64, vocab=VOCABULARY))
        for name, flags in ARMS.items():
            options = {
                **CPU_OPTIONS,
                "model_path": str(model),
                "max_total_tokens": given.tokens,
                "max_mamba_cache_size": given.slots,
                "max_running_requests": 2,
                "skip_tokenizer_init": True,
                "skip_server_warmup": True,
                **flags,
            }
            with Server(ServerSpec(tuple(to_flags(options)), environment(cpu=True))) as server:
                server.start()
                rows = play(Client(server.url), given.turns, given.documents, given.chats)
            again = [row["again"] for row in rows]
            waits = [row["ttft_ms"] for row in rows]
            found = {
                "server": name,
                "turns": len(rows),
                "tokens_prefilled_again": round(float(np.mean(again)), 1),
                "ttft_ms_p50": round(float(np.median(waits)), 1),
                "ttft_ms_max": round(max(waits), 1),
            }
            results.append(found)
            print(found, flush=True)
    if given.json is not None:
        made = [{"case": "chats beside a batch", **row} for row in results]
        write(records_of(made, bench="batch_beside_chat", case=("case",), provider="server"), given.json)


if __name__ == "__main__":
    main()
