"""`marconi model`: write one of the bundled small hybrid models."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from marconi_ext.errors import BadInputError


def model(
    path: Annotated[
        Path, typer.Argument(help="Folder to write: config.json, model.safetensors, tekken.json.")
    ],
    family: Annotated[
        str, typer.Option(help="Its recurrence: mamba2, gdn, kda, lightning, lfm2, lfm2-moe or zaya.")
    ] = "mamba2",
    hidden: Annotated[int | None, typer.Option(help="Width of the residual stream; default 64.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers, all families but mamba2; default 4.")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Layers of mamba2: M Mamba2, * attention, - MLP; default M*M-.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention query heads (kda: of its recurrence); default 4.")
    ] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Attention key/value heads; default 2.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Width of a head; default 16.")] = None,
    mamba_heads: Annotated[int | None, typer.Option(help="Mamba2 heads; default 8.")] = None,
    mamba_head_dim: Annotated[int | None, typer.Option(help="Width of a Mamba2 head; default 16.")] = None,
    n_groups: Annotated[int | None, typer.Option(help="Groups that share B and C; default 2.")] = None,
    state_size: Annotated[int | None, typer.Option(help="Mamba2's state size; default 16.")] = None,
    conv_kernel: Annotated[
        int | None, typer.Option(help="Taps of the causal convolution; default 4.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Chunk of Mamba2's scan in tokens, a power of two; default 64.")
    ] = None,
    mlp: Annotated[
        int | None, typer.Option(help="Width of mamba2's MLP; 0, the default: twice the hidden width.")
    ] = None,
    vocab: Annotated[
        int | None, typer.Option(help="Tekken ids to keep, default 4096; 131072 is all of Tekken.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Longest sequence in tokens; default 131072.")] = None,
    embedding_scale: Annotated[
        int | None,
        typer.Option(help="Scale of the embeddings; a draft guesses the more, the larger; default 1."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the weights; default 0.")] = None,
    force: Annotated[bool, typer.Option(help="Replace a model of other sizes.")] = False,
) -> None:
    """Write a small hybrid model; the same options give the same files to the bit."""
    from marconi_ext.models.families import FAMILIES, write_small_model

    given = {
        "hidden": hidden,
        "layers": layers,
        "pattern": pattern,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mamba_heads": mamba_heads,
        "mamba_head_dim": mamba_head_dim,
        "n_groups": n_groups,
        "state_size": state_size,
        "conv_kernel": conv_kernel,
        "chunk_size": chunk_size,
        "mlp": mlp,
        "vocab": vocab,
        "context": context,
        "embedding_scale": embedding_scale,
        "seed": seed,
    }
    sizes = {name: value for name, value in given.items() if value is not None}
    if family not in FAMILIES:
        raise BadInputError(f"--family {family}: choose from {', '.join(FAMILIES)}")
    known = {field.name for field in fields(FAMILIES[family])}  # type: ignore[arg-type]
    for name in sizes:
        if name not in known:
            others = ", ".join(f"--{size.replace('_', '-')}" for size in given if size in known)
            raise BadInputError(
                f"--{name.replace('_', '-')}: a model of family {family} has no such size; it has {others}"
            )
    try:
        write_small_model(path, FAMILIES[family](**sizes), force=force)
    except ValueError as error:  # starts with the name of the size that doesn't fit
        raise BadInputError("--" + str(error).replace("_", "-")) from error
    except FileExistsError as error:
        raise BadInputError(str(error)) from error
    except OSError as error:
        raise BadInputError(f"{path}: can't be written ({error.strerror or error})") from None
    print(path)
