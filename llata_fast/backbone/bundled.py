"""A backbone as a small folder: its first blocks and its prototypes, without the vocabulary.

The forecaster needs neither the last layers of a decoder nor, once their principal components are known, its word
embeddings. Both together are most of a small language model. `--backbone FOLDER` reads the rest like any other folder:

    config.json               the decoder's own, cut to the first blocks
    model.safetensors         the blocks, bf16
    prototypes.safetensors    [V, D] fp32, in order, so that fewer are the first ones
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from ..durable import replacing, write_text
from ..errors import InputError
from .loading import PROTOTYPES_FILE, load_backbone_weights, read_backbone_config
from .prototypes import backbone_prototypes


def write_bundle(
    source: str, folder: str | Path, *, num_layers: int, num_prototypes: int | None = None, overwrite: bool = False
):
    """Write the first `num_layers` blocks of the backbone `source` and its prototypes into `folder`.

    `num_prototypes` defaults to all: D - 1, or as many as `source` holds if it is itself a bundle. Raises InputError
    if the source cannot be read, or if the folder is not empty and `overwrite` is not set.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write {folder}: it is a file")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder} is not empty: give another --output or --overwrite")
    if folder.resolve() == Path(source).expanduser().resolve():
        raise InputError(f"cannot write {folder}: it is the backbone itself")
    config = read_backbone_config(source, num_layers)
    weights = load_backbone_weights(source, config)
    if num_prototypes is None:
        num_prototypes = config.hidden_size - 1 if weights.prototypes is None else len(weights.prototypes)
    prototypes = backbone_prototypes(weights, num_prototypes)
    blocks = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.blocks.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # removed first and written last: an incomplete bundle has no config.json, and is refused
        (folder / "config.json").unlink(missing_ok=True)
        tensors = {"model.safetensors": blocks, PROTOTYPES_FILE: {"prototypes": prototypes.contiguous()}}
        for name, values in tensors.items():
            with replacing(folder / name) as partial:
                save_file(values, partial, {"format": "pt"})
        write_text(folder / "config.json", config.to_json_string())
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
