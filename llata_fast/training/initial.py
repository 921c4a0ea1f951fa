"""Trained weights that another training starts from."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import load_torch_model, snapshot_download

from ..config import LlataConfig
from ..durable import MANIFEST, find_damage
from ..errors import InputError, in_one_line
from ..modeling import LlataForPrediction
from ..ranks import from_first_rank
from ..settings import ModelSettings, check_agreement

# where and how a training computes is its own business
_OWN = ("machine", "training")


def model_settings_of(source: str) -> dict[str, Any]:
    """The settings of a trained model that its weights rest on.

    Raises:
        InputError: no trained model there, or a merged one, which cannot be trained.
    """
    config = _config_of(_folder_of(source))
    return {
        item.name: getattr(config, item.name)
        for item in fields(ModelSettings)
        if item.metadata["changes"] not in _OWN and item.name != "backbone_pass"
    }


def load_initial(model: LlataForPrediction, source: str):
    """Move what `model` trains to the trained weights in `source`, a run, a checkpoint, a folder or a hub id.

    Raises:
        InputError: no trained model there, or one of other settings, by the first that differs.
    """
    folder = _folder_of(source)
    check_agreement(vars(_config_of(folder)), vars(model.config), str(source))
    try:
        missing, unexpected = load_torch_model(model, folder)
    except Exception as error:  # a damaged file raises whatever its reader trips over
        raise InputError(f"{source}: its weights cannot be read: {in_one_line(error)[:300]}") from None
    # maps of channels are those of one series
    lacking = set(missing) - {"skip.own"} - set(model._keys_to_ignore_on_save or ())
    if lacking or unexpected:
        problem = f"lacks {min(lacking)}" if lacking else f"holds {unexpected[0]}, which this model does not have"
        raise InputError(f"{source}: its weights do not fit: it {problem}")
    if model.skip is not None:
        # of what is learned it keeps as much as this training bears out
        model.skip.keep(1.0)


def _folder_of(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(from_first_rank(lambda: snapshot_download(source, allow_patterns=["*.json", "*.safetensors"])))
    except (OSError, ValueError) as error:
        raise InputError(f"no trained model at {source}: no such folder, nor on the hub ({error})") from None


def _config_of(folder: Path) -> LlataConfig:
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise InputError(f"{folder} holds no config.json and model.safetensors: not the folder of a trained model")
    if (folder / MANIFEST).exists() and (damage := find_damage(folder)):
        raise InputError(f"{folder} is damaged: {damage}")
    try:
        config = LlataConfig.from_pretrained(folder)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {in_one_line(error)[:300]}") from None
    if config.merged:
        raise InputError(f"{folder} holds a merged model, which cannot be trained: give the run that it was made from")
    return config
