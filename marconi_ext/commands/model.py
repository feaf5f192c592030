"""`marconi model`: write the bundled small hybrid model."""

from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.errors import BadInputError


def model(
    path: Annotated[
        Path, typer.Argument(help="Folder to write: config.json, model.safetensors, tekken.json.")
    ],
    hidden: Annotated[int, typer.Option(help="Width of the residual stream.")] = 64,
    pattern: Annotated[str, typer.Option(help="Layers: M Mamba2, * attention, - MLP.")] = "M*M-",
    heads: Annotated[int, typer.Option(help="Attention query heads.")] = 4,
    kv_heads: Annotated[int, typer.Option(help="Attention key/value heads.")] = 2,
    head_dim: Annotated[int, typer.Option(help="Width of an attention head.")] = 16,
    mamba_heads: Annotated[int, typer.Option(help="Mamba2 heads.")] = 8,
    mamba_head_dim: Annotated[int, typer.Option(help="Width of a Mamba2 head.")] = 16,
    n_groups: Annotated[int, typer.Option(help="Groups that share B and C.")] = 2,
    state_size: Annotated[int, typer.Option(help="SSM state size.")] = 16,
    conv_kernel: Annotated[int, typer.Option(help="Taps of the causal convolution.")] = 4,
    chunk_size: Annotated[int, typer.Option(help="Chunk of the scan, in tokens; a power of two.")] = 64,
    mlp: Annotated[int, typer.Option(help="Width of the MLP; 0: twice the hidden width.")] = 0,
    vocab: Annotated[int, typer.Option(help="Tekken ids to keep; 131072 is all of Tekken.")] = 4096,
    context: Annotated[int, typer.Option(help="Longest sequence, in tokens.")] = 131_072,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    force: Annotated[bool, typer.Option(help="Replace a model of other sizes.")] = False,
) -> None:
    """Write a small NemotronH-style model; the same options give the same files to the bit."""
    from marconi_ext.models.toy_model import ToyModel, write_model

    try:
        sizes = ToyModel(
            hidden=hidden,
            pattern=pattern,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            mamba_heads=mamba_heads,
            mamba_head_dim=mamba_head_dim,
            n_groups=n_groups,
            state_size=state_size,
            conv_kernel=conv_kernel,
            chunk_size=chunk_size,
            mlp=mlp,
            vocab=vocab,
            context=context,
            seed=seed,
        )
        write_model(path, sizes, force=force)
    except ValueError as error:  # starts with the name of the size that doesn't fit
        raise BadInputError("--" + str(error).replace("_", "-")) from error
    except FileExistsError as error:
        raise BadInputError(str(error)) from error
    except OSError as error:
        raise BadInputError(f"{path}: can't be written ({error.strerror or error})") from None
    print(path)
