"""What `soak.py` does to a server from outside: pauses it, kills its tuner, holds one rank, and reads its memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter

import aiohttp
import numpy as np

from marconi_ext.policies.paper import tuner_process
from marconi_ext.servers.server import Server, group_members

KILL_EVERY_S = 8.0
SECOND_RANK = "sglang::scheduler_TP1"


def named(server: Server, word: str) -> list[int]:
    """Ids of the server's processes whose command line has `word` in it."""
    found = []
    for folder, _ in group_members(server.group):
        with contextlib.suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def memory_mb(server: Server) -> float:
    """Resident memory of the server's process group."""
    total = 0
    for folder, _ in group_members(server.group):
        with contextlib.suppress(OSError):
            text = (folder / "status").read_text()
            total += int(text.split("VmRSS:")[1].split()[0]) if "VmRSS:" in text else 0
    return total / 1024


async def pause(live: Server, counts: Counter, seed: int) -> None:
    """Pause all generation for 50 to 300 ms, again and again: its requests stay where they are, or are retracted."""
    rng = np.random.default_rng(seed)
    async with aiohttp.ClientSession(raise_for_status=True) as http:
        while True:
            await asyncio.sleep(float(rng.uniform(2, 8)))
            mode = str(rng.choice(["in_place", "retract"]))
            async with http.post(f"{live.url}/pause_generation", json={"mode": mode}):
                pass
            try:
                await asyncio.sleep(float(rng.uniform(0.05, 0.3)))
            finally:
                async with http.post(f"{live.url}/continue_generation", json={}):
                    pass
            counts[f"paused_{mode}"] += 1


async def kill_tuners(live: Server, counts: Counter) -> None:
    """Kill a rank's tuner process as soon as it is seen, then leave the next ones alone for a while."""
    while True:
        for pid in named(live, tuner_process.__name__)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                counts["tuners_killed"] += 1
            await asyncio.sleep(KILL_EVERY_S)
        await asyncio.sleep(0.02)


async def slow_down_rank(live: Server, counts: Counter, seed: int) -> None:
    """Hold the second rank's scheduler for 20 to 300 ms, again and again."""
    rng = np.random.default_rng(seed)
    (pid,) = named(live, SECOND_RANK)
    while True:
        await asyncio.sleep(float(rng.uniform(0.2, 1.5)))
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(float(rng.uniform(0.02, 0.3)))
        finally:
            os.kill(pid, signal.SIGCONT)
        counts["rank_held"] += 1
