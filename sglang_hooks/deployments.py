"""The ways in which SGLang is deployed, and what the extension makes of each: refusals and docs/deployments.md alike.

`compat.py` refuses what a row's conflicts say; `python -m sglang_hooks.deployments` prints the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PROVEN_ALGORITHMS = ("NGRAM", "EAGLE", "EAGLE3", "STANDALONE", "DFLASH", "DSPARK")
"""Speculative algorithms whose answers were held against the cache off."""

SPECULATION_TESTED = (
    "CPU engine (Mamba2, Gated DeltaNet): 2 × 148 requests equal the cache off, with overlap and without, and "
    "(`bench/speculation_modes.py`) with retractions, two ranks, chunks of 64, tight pools, a host tier"
)


@dataclass(frozen=True)
class Conflict:
    """A setting that can't be combined with --enable-marconi.

    applies: view of resolved arguments → whether the conflict is there
    message: what to do
    """

    applies: Callable[[Any], bool]
    message: str


@dataclass(frozen=True)
class Deployment:
    """One way to serve.

    flags: SGLang's, as they are given beside --enable-marconi
    tested: what has run; empty: nothing
    conflicts: what of it is refused; a deployment that isn't `supported` is refused whole
    """

    name: str
    flags: str
    supported: bool
    tested: str = ""
    conflicts: tuple[Conflict, ...] = ()


def _speculates(arguments: Any) -> bool:
    return arguments.speculative_algorithm is not None


def _is_apart(arguments: Any) -> bool:
    return arguments.disaggregation_mode != "null"


def _attention_is_split(arguments: Any) -> bool:
    return bool(arguments.enable_dp_attention) or (arguments.attn_dp_size or 1) > 1


def _uses(*algorithms: str) -> Callable[[Any], bool]:
    return lambda arguments: arguments.speculative_algorithm in algorithms


def _verifies_are_ragged() -> bool:
    """Whether DSPARK verifies fewer of a request's drafts than it made, or accepts fewer, as its confidence in them
    says."""
    from sglang.srt.speculative.ragged_verify import RaggedVerifyMode, read_ragged_verify_mode

    return read_ragged_verify_mode() is not RaggedVerifyMode.STATIC


def draft_is_recurrent(arguments: Any) -> bool:
    """Whether the draft model has layers with recurrent states."""
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import ModelConfig

    config = ModelConfig(
        model_path=arguments.speculative_draft_model_path,
        revision=arguments.speculative_draft_model_revision,
        trust_remote_code=arguments.trust_remote_code,
    )
    return mambaish_config(config) is not None


TWICE = "CPU engine: 2 × 148 requests equal the cache off"

DEPLOYMENTS = (
    Deployment("one GPU, overlap scheduling", "none", True, "CPU engine, H100 (Mamba2)"),
    Deployment(
        "without overlap scheduling",
        "`--disable-overlap-schedule`",
        True,
        "CPU engine",
    ),
    Deployment("tensor parallel", "`--tp-size N`", True, "CPU engine, 2 ranks, every decision compared"),
    Deployment(
        "data parallel",
        "`--dp-size N`: a tree and a policy a replica",
        True,
        "CPU engine: 2 × 150 requests equal the cache off, 2 replicas, metrics and census of each",
    ),
    Deployment(
        "data-parallel attention",
        "`--tp-size N --attn-dp-size N`, or `--enable-dp-attention --dp-size N`: a tree and a policy a replica",
        True,
        "CPU engine (Gated DeltaNet): 2 × 98 requests equal the cache off, 2 replicas of the attention, with overlap",
    ),
    Deployment(
        "pipeline parallel",
        "`--pp-size N`, with `--tp-size N` as well",
        True,
        f"{TWICE}, 2 stages, and 2 × 2 ranks, every decision compared",
        conflicts=(
            Conflict(
                lambda a: a.pp_size > 1 and _speculates(a),
                "does not support --speculative-algorithm with --pp-size above 1: drop one",
            ),
            Conflict(
                lambda a: a.pp_size > 1 and (a.enable_hierarchical_cache or a.enable_unified_memory),
                "supports --pp-size above 1 without --enable-hierarchical-cache and --enable-unified-memory alone",
            ),
        ),
    ),
    Deployment(
        "host tier", "`--enable-hierarchical-cache`", True, "CPU engine: 500 requests equal the cache off"
    ),
    Deployment(
        "storage tier, one for several servers",
        "`--enable-hierarchical-cache --hicache-storage-backend …`; `--marconi-storage-share 0.5` writes the half of "
        "the states that is worth most",
        True,
        f"{TWICE}, `file`: a second engine resumes what the first has written",
    ),
    Deployment(
        "decode context parallel",
        "`--dcp-size N`",
        False,
        conflicts=(
            Conflict(
                lambda a: a.dcp_size > 1,
                "does not support --dcp-size above 1: SGLang runs it in attention kernels of GPUs alone, where answers "
                "were not held against the cache off; drop it",
            ),
        ),
    ),
    Deployment(
        "context parallel",
        "`--attn-cp-size N`, `--enable-prefill-cp`",
        False,
        conflicts=(
            Conflict(
                lambda a: a.attn_cp_size > 1 or a.enable_prefill_cp,
                "does not support context parallelism: drop --attn-cp-size and --enable-prefill-cp",
            ),
        ),
    ),
    Deployment(
        "prefill and decode apart: the prefill server",
        "`--disaggregation-mode prefill`",
        True,
        f"{TWICE}, over Mooncake's TCP to a decode server without the extension's cache and to one with it; 5,000 with "
        "transfers that broke and stalled, aborts and retractions (`bench/soak_pair.py`), to one without it",
        conflicts=(
            Conflict(
                lambda a: _is_apart(a) and _speculates(a),
                "does not support --speculative-algorithm with --disaggregation-mode: drop one",
            ),
            Conflict(
                lambda a: _is_apart(a) and a.pp_size > 1,
                "does not support --pp-size above 1 with --disaggregation-mode: drop one",
            ),
            Conflict(
                lambda a: a.enable_pd_role_switch,
                "does not support --enable-pd-role-switch: a server that changes its role builds its cache anew",
            ),
        ),
    ),
    Deployment(
        "prefill and decode apart: the decode server",
        "`--disaggregation-mode decode`, SGLang's prefix cache off: the flag is accepted, does nothing, and the log "
        "says so. With overlap scheduling SGLang itself, the extension off, answers wrong after a retraction: "
        "`--disable-overlap-schedule`, or `--disaggregation-decode-retraction-backup none`",
        True,
        "the same runs",
    ),
    Deployment(
        "prefill and decode apart: a decode server with a prefix cache",
        "`--disaggregation-mode decode --disaggregation-decode-enable-radix-cache` (experimental in SGLang)",
        True,
        "the same runs; last-token states are kept there",
    ),
    Deployment(
        "prefill and decode multiplexed",
        "`--enable-pdmux`",
        False,
        conflicts=(Conflict(lambda a: a.enable_pdmux, "does not support --enable-pdmux (split prefill)"),),
    ),
    Deployment(
        "two batches overlapped",
        "`--enable-two-batch-overlap`",
        False,
        conflicts=(
            Conflict(
                lambda a: a.enable_two_batch_overlap, "does not support --enable-two-batch-overlap: drop it"
            ),
        ),
    ),
    Deployment(
        "speculation, n-grams",
        "`--speculative-algorithm NGRAM`, page size 1",
        True,
        f"{SPECULATION_TESTED}; KDA with overlap",
        conflicts=(
            Conflict(
                lambda a: a.speculative_algorithm == "NGRAM" and (a.page_size or 1) > 1,
                "supports --speculative-algorithm NGRAM with --page-size 1 alone",
            ),
            Conflict(
                lambda a: a.speculative_algorithm == "NGRAM" and a.speculative_ngram_max_bfs_breadth < 2,
                "with --speculative-algorithm NGRAM needs --speculative-ngram-max-bfs-breadth 2 or more: at 1 SGLang's "
                "drafts branch all the same, but it computes their states as a chain's, and answers wrongly",
            ),
            Conflict(
                lambda a: (
                    _speculates(a) and 1 < (a.page_size or 1) < 2 * (a.speculative_num_draft_tokens or 0)
                ),
                "with --speculative-algorithm needs --page-size 1, or twice --speculative-num-draft-tokens at least",
            ),
            Conflict(
                lambda a: _speculates(a) and a.enable_unified_memory,
                "does not support --speculative-algorithm with --enable-unified-memory: drop one",
            ),
            Conflict(
                lambda a: _speculates(a) and a.enable_mixed_chunk,
                "does not support --speculative-algorithm with --enable-mixed-chunk: drop the latter",
            ),
            Conflict(
                lambda a: a.speculative_adaptive,
                "does not support --speculative-adaptive: drop it",
            ),
        ),
    ),
    Deployment(
        "speculation, multi-token prediction and EAGLE3",
        "`--speculative-algorithm NEXTN` (or `EAGLE`, the same to SGLang) `--speculative-num-steps 3 "
        "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4`; or "
        "`EAGLE3` with a head's path. Page size 1, or twice the draft tokens at least",
        True,
        f"{SPECULATION_TESTED}; lightning attention with overlap; "
        "pages of 16; with Gated DeltaNet EAGLE3, and trees (`--speculative-eagle-topk 2`) "
        "once by hand",
        conflicts=(
            Conflict(
                lambda a: a.enable_multi_layer_eagle,
                "does not support --enable-multi-layer-eagle: answers with it were not held against the cache off",
            ),
        ),
    ),
    Deployment(
        "speculation, a draft model of its own",
        "`--speculative-algorithm STANDALONE --speculative-draft-model-path …`, a model without recurrent layers; page "
        "size as above",
        True,
        "CPU engine (Mamba2, short convolutions; once by hand KDA, lightning attention): 2 × 148 requests equal the "
        "cache off, with overlap",
        conflicts=(
            Conflict(
                lambda a: a.speculative_algorithm == "STANDALONE" and draft_is_recurrent(a),
                "does not support a draft model with recurrent layers: SGLang would keep its states in the target's "
                "slots",
            ),
        ),
    ),
    Deployment(
        "speculation, blocks of drafts",
        "`--speculative-algorithm DFLASH` or `DSPARK`, `--speculative-draft-model-path …`; page size as above",
        True,
        "CPU engine (Mamba2, Gated DeltaNet): 2 × 148 requests equal the cache off, with overlap; once by hand "
        "without, and with pages of 16; with Gated DeltaNet also with retractions (DFLASH) and aborts (DSPARK); "
        "LFM2 once by hand with overlap. "
        "In place of what a draft of random weights proposes, the drafts were recorded answers, spoiled at random",
        conflicts=(
            Conflict(
                lambda a: _uses("DFLASH", "DSPARK")(a) and _attention_is_split(a),
                "does not support --speculative-algorithm DFLASH and DSPARK with data-parallel attention: answers with "
                "both were not held against the cache off",
            ),
            Conflict(
                lambda a: _uses("DSPARK")(a) and _verifies_are_ragged(),
                "supports --speculative-algorithm DSPARK with SGLANG_RAGGED_VERIFY_MODE=static alone, its default",
            ),
        ),
    ),
    Deployment(
        "speculation, any other",
        "`--speculative-algorithm …`",
        False,
        conflicts=(
            Conflict(
                lambda a: _speculates(a) and not _uses(*PROVEN_ALGORITHMS)(a),
                f"supports --speculative-algorithm {', '.join(PROVEN_ALGORITHMS)} alone",
            ),
        ),
    ),
)


def conflicts() -> tuple[Conflict, ...]:
    """What the deployments refuse."""
    return tuple(conflict for deployment in DEPLOYMENTS for conflict in deployment.conflicts)


def page() -> str:
    """docs/deployments.md."""
    lines = [
        "# Deployments",
        "",
        "Made by `python -m sglang_hooks.deployments` from the table that refuses; a test compares them. What each",
        "single option does is in [options.md](options.md).",
        "",
        "| deployment | | flags | tested | refused at start |",
        "|---|---|---|---|---|",
    ]
    for row in DEPLOYMENTS:
        decision = "supported" if row.supported else "refused"
        refused = "; ".join(conflict.message for conflict in row.conflicts)
        lines.append(f"| {row.name} | {decision} | {row.flags} | {row.tested or 'no'} | {refused} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
