"""Print, as JSON, what the trial of each family's kernel finds on the CPU platform, whose operators and hooks are those
of a server. Run by test_trial_on_cpu_platform.py in a child process, since SGLang is patched for good."""

import json
from types import SimpleNamespace

import torch

from sglang_hooks import process_parts
from sglang_hooks.cpu_platform import delta_operators, lightning_operators
from sglang_hooks.hooks import install
from sglang_hooks.ledger import CheckpointLedger
from sglang_hooks.recurrence import form
from sglang_hooks.recurrence.forward import ForwardCheckpoints
from sglang_hooks.recurrence.interface import SaverContext
from sglang_hooks.recurrence.registry import GDN, KDA, LIGHTNING
from sglang_hooks.stats import CacheStats

HEADS, KEY_HEADS, VALUE, KEY = 4, 2, 16, 16


def trial_of(family, value, key):
    """The trial as a server's first prefill makes it, through the hooks."""
    pool = torch.zeros(1, HEADS, value, key)
    backend = SimpleNamespace(
        linear_backend="seg_la",
        tp_slope=[torch.tensor([0.5, 0.1, 0.02, 0.001]).view(HEADS, 1, 1)],
        req_to_token_pool=SimpleNamespace(mamba2_layer_cache=lambda i: SimpleNamespace(temporal=pool)),
    )
    saver = family.saver(SaverContext(1, lambda name, n: None))
    process_parts.start(ForwardCheckpoints(CheckpointLedger(), saver, CacheStats(), backend))
    layer = SimpleNamespace(layer_id=0, num_k_heads=KEY_HEADS if family is GDN else HEADS)
    trial = saver.in_kernel.trial(backend, layer, {"mixed_qkv": pool, "k": pool})
    saver.in_kernel.in_place = saver.in_kernel.has_stages
    found = form.held(trial)
    return {"error": found.error, "outputs": found.outputs}


def main():
    torch.set_num_threads(1)
    delta_operators.apply()
    lightning_operators.apply()
    install([hook for family in (GDN, KDA) for hook in family.hooks if ".fla." in hook.target])
    sizes = {"gdn": (GDN, VALUE, KEY), "kda": (KDA, VALUE, KEY), "lightning": (LIGHTNING, KEY, KEY)}
    print(json.dumps({name: trial_of(*of) for name, of in sizes.items()}))


if __name__ == "__main__":
    main()
