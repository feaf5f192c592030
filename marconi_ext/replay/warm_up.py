"""A few prompts before the first measured one, so that it finds a warm server."""

import asyncio

import numpy as np

from marconi_ext.replay.client import GenerateClient
from marconi_ext.replay.sender import replay
from marconi_ext.servers.arm_server import ServerOptions
from marconi_ext.servers.engine_options import ModelFacts
from marconi_ext.servers.server import Server
from marconi_ext.traces.script import Script, Turn, draw_tokens

WARM_UP_TOKENS = (600, 600, 600, 600)
GPU_WARM_UP_TOKENS = (*WARM_UP_TOKENS, 3_000, 3_000, 3_000, 3_000)  # kernels are tuned by the size of a batch
GPU_WARM_UP_CONCURRENCY = 4


def warm_up(options: ServerOptions, server: Server) -> None:
    """Send a few prompts that share nothing, so that the first measured request finds a warm server.

    On a GPU, one by one and then four at once: Triton compiles and tunes its kernels there as shapes first come,
    for seconds.
    """
    rng = np.random.default_rng(0)
    facts = ModelFacts(options.model_path)
    lengths = WARM_UP_TOKENS if options.cpu else GPU_WARM_UP_TOKENS

    def scripts() -> list[Script]:
        prompts = [draw_tokens(rng, min(n, facts.context_tokens // 2), facts.vocabulary) for n in lengths]
        return [Script(f"warm-up/{i}", (Turn(p, 8, float(i)),)) for i, p in enumerate(prompts)]

    async def play() -> None:
        async with GenerateClient(server.url, timeout_s=options.request_timeout_s) as client:
            await replay(client, scripts(), 1)
            if not options.cpu:
                await replay(client, scripts(), GPU_WARM_UP_CONCURRENCY)

    asyncio.run(play())
