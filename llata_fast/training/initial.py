"""Trained weights as the initial weights of another training."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import load_torch_model

from ..config import LlataConfig
from ..durable import MANIFEST, find_damage
from ..errors import InputError, in_one_line
from ..linear import LinearSkip
from ..modeling import LlataForPrediction
from ..ranks import from_first_rank
from ..settings import ModelSettings, check_agreement
from ..stored_model import find_model

# settings that the new training chooses for itself
_OWN = ("machine", "training")


def model_settings_of(source: str) -> dict[str, Any]:
    """The settings that a trained model's weights depend on.

    Raises:
        InputError: `source` holds no trained model, or a merged one, which cannot be trained.
    """
    config = _config_of(_folder_of(source))
    return {
        item.name: getattr(config, item.name)
        for item in fields(ModelSettings)
        if item.metadata["changes"] not in _OWN and item.name != "backbone_pass"
    }


def load_initial(model: LlataForPrediction, source: str):
    """Copy the trained weights of `source` (a run, a checkpoint, a folder or a hub id) into `model`.

    Raises:
        InputError: `source` holds no trained model, or its settings differ; the message names the first that does.
    """
    folder = _folder_of(source)
    check_agreement(vars(_config_of(folder)), vars(model.config), str(source))
    skip = model.skip
    hook = None if skip is None else skip.register_load_state_dict_pre_hook(LinearSkip.without_other_channels)
    try:
        missing, unexpected = load_torch_model(model, folder)
    except Exception as error:  # reading a damaged file can raise anything
        raise InputError(f"{source}: its weights cannot be read: {in_one_line(error)[:300]}") from None
    finally:
        if hook is not None:
            hook.remove()
    own = set() if skip is None else {f"skip.{name}" for name in skip.OF_CHANNELS}
    lacking = set(missing) - own - set(model._keys_to_ignore_on_save or ())
    if lacking or unexpected:
        problem = f"lacks {min(lacking)}" if lacking else f"holds {unexpected[0]}, which this model does not have"
        raise InputError(f"{source}: its weights do not fit this model: it {problem}")
    if skip is not None:
        # the source's share does not count: this training chooses its own
        skip.keep(1.0)


def _folder_of(source: str) -> Path:
    folder = Path(source).expanduser()
    return find_model(folder) if folder.is_dir() else from_first_rank(lambda: find_model(source))


def _config_of(folder: Path) -> LlataConfig:
    if (folder / MANIFEST).exists() and (damage := find_damage(folder)):
        raise InputError(f"{folder} is damaged: {damage}")
    try:
        config = LlataConfig.from_pretrained(folder)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {in_one_line(error)[:300]}") from None
    if config.merged:
        raise InputError(f"{folder} holds a merged model, which cannot be trained: give the run it was merged from")
    return config
