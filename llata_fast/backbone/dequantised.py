"""A GGUF file's first blocks in fp32, kept in the cache: transformers reads and dequantises such a file whole."""

import copy
import hashlib
import importlib.metadata
import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from ..cache import cache_folder
from ..durable import find_damage, partial_name, settle_folder
from ..errors import InputError

logger = logging.getLogger(__name__)

# part of the cache's key: raise it when what is kept changes
_VERSION = 1
_TENSORS = "tensors.safetensors"


def read_gguf(path: Path, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The tensors of the decoder of `config` by its own names, word embedding included, fp32.

    They are kept under a hash of the file, of the number of blocks and of the versions of what dequantises, and
    checked when they are read again. A cache that cannot be read or written costs the time, never the run.

    Raises:
        InputError: the file lacks a tensor. Whatever transformers makes of a damaged file comes as it is.
    """
    folder = cache_folder("backbones") / _key(path, config.num_hidden_layers)
    if folder.is_dir():
        damage = find_damage(folder)
        if damage is None:
            try:
                return load_file(folder / _TENSORS)
            except (OSError, SafetensorError) as error:
                damage = f"it cannot be read: {error}"
        logger.warning("%s is read whole again, %s cannot be used: %s", path.name, folder, damage)
    tensors = _dequantise(path, config)
    try:
        _keep(tensors, folder)
    except OSError as error:
        logger.warning("the dequantised blocks could not be kept in %s: %s", folder, error)
    return tensors


def _key(path: Path, num_layers: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    versions = [importlib.metadata.version(name) for name in ("transformers", "gguf")]
    digest.update(f"{_VERSION} {num_layers} {' '.join(versions)}".encode())
    return digest.hexdigest()[:32]


def _keep(tensors: dict[str, Tensor], folder: Path):
    # several ranks may write at once: each a folder of its own, then a rename
    partial = partial_name(folder.with_name(f"{folder.name}.{os.getpid()}"))
    try:
        partial.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / _TENSORS)
        settle_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dequantise(path: Path, config: PreTrainedConfig) -> dict[str, Tensor]:
    decoder: PreTrainedModel
    # the cut config keeps transformers from naming and copying what is not used
    decoder, report = AutoModel.from_pretrained(
        path.parent,
        gguf_file=path.name,
        config=copy.deepcopy(config),
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
    )
    # transformers draws at random what a file lacks
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"backbone {str(path)!r}: {path.name} lacks {missing[0]!r}")
    return dict(decoder.state_dict())
