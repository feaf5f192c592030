"""Simulates one trace with one memory, split in several ways between KV and states."""

from __future__ import annotations

from marconi_ext.errors import BadInputError
from marconi_ext.policies.registry import PolicyName
from marconi_ext.profiles import ModelProfile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options
from marconi_ext.simulator.sweep import run_cells
from marconi_ext.simulator.workload import Workload

KEPT = ("token_hit_rate", "ideal_hit_rate", "state_limited_loss", "kv_limited_loss", "flops_saved_fraction")


def parse_shares(text: str) -> list[float]:
    """Per cent → fractions. Raises BadInputError for none, or one outside 0 to 100 (neither included)."""
    try:
        shares = sorted({float(part) / 100 for part in text.split(",") if part.strip()})
    except ValueError:
        shares = []
    if not shares or not (shares[0] > 0 and shares[-1] < 1):
        raise BadInputError(f"--shares {text}: want per cent above 0 and below 100, as in 10,50,90")
    return shares


def split(memory_bytes: int, share: float, profile: ModelProfile, running: int) -> Capacity | None:
    """The pools that a share for states gives; None where one of them holds nothing.

    running: requests at a time, each of which keeps a slot that the cache can't have
    """
    slots = int(memory_bytes * share / profile.state_bytes) - running
    tokens = int(memory_bytes * (1 - share) / profile.kv_bytes_per_token)
    return Capacity(slots=slots, tokens=tokens) if slots > 0 and tokens > 0 else None


def find_splits(
    workload: Workload,
    memory_bytes: int,
    shares: list[float],
    policy: PolicyName,
    profile: ModelProfile,
    running: int,
    processes: int,
    tiers: list[int] | None = None,
) -> dict:
    """JSON-ready: `splits` in order of share, `best` (most hits; of equals, the smallest share), `shared`, one buffer
    for both, and `tiers`: what one buffer as large as the memory and the tiers so far would hit, which is more than
    tiers give whose contents overlap. Rates are fractions of the prompt tokens. Raises BadInputError where no split
    holds anything."""
    pools = [(share, found) for share in shares if (found := split(memory_bytes, share, profile, running))]
    if not pools:
        raise BadInputError(
            f"--memory: {memory_bytes:,} bytes hold no state beside {running} running requests at these --shares; "
            f"a state of {profile.name} takes {profile.state_bytes:,}"
        )
    room = max(1, int(memory_bytes - running * profile.state_bytes))
    shared = Capacity(bytes=room)
    cells: list[dict] = []
    sizes = [sum((tiers or [])[: n + 1]) for n in range(len(tiers or []))]
    behind = [Capacity(bytes=room + size) for size in sizes]
    jobs = [(policy, capacity) for capacity in [*(c for _, c in pools), shared, *behind]]
    run_cells(workload, jobs, profile, Options(), processes=processes, done=cells.append)
    splits = [
        {
            "state_share": share,
            "mamba_full_memory_ratio": round(share / (1 - share), 4),
            "slots": capacity.slots,
            "tokens": capacity.tokens,
            **{name: cell[name] for name in KEPT},
        }
        for (share, capacity), cell in zip(pools, cells, strict=False)
    ]
    return {
        "trace": workload.name,
        "model": profile.name,
        "policy": policy.text,
        "memory_bytes": memory_bytes,
        "running": running,
        "requests": len(workload.requests),
        "longest_request_tokens": max(len(r.input_ids) + len(r.output_ids) for r in workload.requests),
        "splits": splits,
        "best": max(splits, key=lambda found: found["token_hit_rate"]),
        "shared": {name: cells[len(pools)][name] for name in KEPT},
        "tiers": [
            {"tier_bytes": size, **{name: cell[name] for name in KEPT}}
            for size, cell in zip(tiers or [], cells[len(pools) + 1 :], strict=True)
        ],
    }
