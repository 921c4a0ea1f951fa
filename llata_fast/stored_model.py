"""The folder of a trained model: where it is, what it describes, and whether its weights fit."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import nn

from .backbone.placing import whole_models
from .config import LlataConfig
from .errors import InputError, in_one_line
from .run_folder import CONFIG, WEIGHTS

HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def find_model(source: str | Path, **hub: Any) -> Path:
    """The folder of a trained model, downloaded if `source` is a hub id; `hub` takes `HUB_OPTIONS`.

    Raises:
        InputError: `source` is neither a folder nor on the hub, or holds no configuration and weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"], **hub))
        except (OSError, ValueError) as error:
            raise InputError(f"no trained model at {source}: not a folder, and not on the hub ({error})") from None
    if not (folder / CONFIG).is_file() or not any(folder.glob("model*.safetensors")):
        raise InputError(f"{folder} holds no {CONFIG} and {WEIGHTS}: not the folder of a trained model")
    return folder


@contextlib.contextmanager
def describing_a_model(folder: Path) -> Iterator[None]:
    """Turn any error from building the model that a damaged folder describes into one line."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {in_one_line(error)[:300]}"
        raise InputError(f"{folder} is damaged: its config.json and weights do not form a model: {what}") from error


def stored_config(folder: Path, **given: Any) -> LlataConfig:
    """The folder's configuration, with the fields in `given` replaced."""
    try:
        return LlataConfig.from_pretrained(folder, **given)
    except InputError as error:
        raise error if given else InputError(f"{folder / CONFIG}: {error}") from None


def check_shapes(build: Callable[[LlataConfig], nn.Module], config: LlataConfig, folder: Path):
    """Raise ValueError if stored weights differ in shape from what `config` describes; allocates no memory."""
    stored: dict[str, list[int]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            stored |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    with torch.device("meta"), whole_models():
        built = build(config)
    for name, weight in built.state_dict().items():
        if name in stored and stored[name] != list(weight.shape):
            raise ValueError(f"{name} is {stored[name]}, but its config describes {list(weight.shape)}")
