"""The first blocks of a GGUF file in fp32, cached on disk, as transformers dequantises the complete file each time."""

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

_log = logging.getLogger(__name__)

# part of the cache key: increase it when the cached content changes
_VERSION = 1
_TENSORS = "tensors.safetensors"


def read_gguf(path: Path, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The tensors of `config`'s decoder by its own names, including the word embedding, in fp32.

    The cache key is a hash of the file, the number of blocks and the versions of the packages that dequantise. Cached
    tensors are verified when read. If the cache cannot be read or written, only time is lost.

    Raises:
        InputError: the file lacks a tensor. Errors of transformers about a damaged file pass through.
    """
    folder = cache_folder("backbones") / _key(path, config.num_hidden_layers)
    if folder.is_dir():
        damage = find_damage(folder)
        if damage is None:
            try:
                return load_file(folder / _TENSORS)
            except (OSError, SafetensorError) as error:
                damage = f"it cannot be read: {error}"
        _log.warning("reading all of %s again, as %s cannot be used: %s", path.name, folder, damage)
    tensors = _dequantise(path, config)
    try:
        _keep(tensors, folder)
    except OSError as error:
        _log.warning("the dequantised blocks could not be cached in %s: %s", folder, error)
    return tensors


def _key(path: Path, num_layers: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    versions = [importlib.metadata.version(name) for name in ("transformers", "gguf")]
    digest.update(f"{_VERSION} {num_layers} {' '.join(versions)}".encode())
    return digest.hexdigest()[:32]


def _keep(tensors: dict[str, Tensor], folder: Path):
    # several ranks may write at once, so each writes its own folder and renames it
    partial = partial_name(folder.with_name(f"{folder.name}.{os.getpid()}"))
    try:
        partial.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / _TENSORS)
        settle_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dequantise(path: Path, config: PreTrainedConfig) -> dict[str, Tensor]:
    decoder: PreTrainedModel
    # with the cut config, transformers does not name and copy blocks that are not used
    decoder, report = AutoModel.from_pretrained(
        path.parent,
        gguf_file=path.name,
        config=copy.deepcopy(config),
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
    )
    # transformers initialises missing tensors at random
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"backbone {str(path)!r}: {path.name} lacks {missing[0]!r}")
    return dict(decoder.state_dict())
