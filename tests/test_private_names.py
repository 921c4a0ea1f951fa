"""The private names of transformers, accelerate and DeepSpeed that we use exist in the installed versions.

`make test-oldest` and `make test-newest` run this at both ends of the range that setup.py allows. A name that is gone
or takes other arguments fails here, with its name, and not in the middle of a training.
"""

import importlib
import inspect
import re

import pytest
import torch
from tiny import random_backbone
from transformers import Trainer
from transformers.integrations import deepspeed as integration

from llata_fast.backbone.loading import read_backbone_config
from llata_fast.backbone.placing import whole_models
from llata_fast.training.trainer import ForecastTrainer

# names of modules, and the arguments that we pass by name
NAMES = {
    "transformers.modeling_flash_attention_utils._flash_attention_forward": (
        "query_length",
        "is_causal",
        "dropout",
        "softmax_scale",
        "sliding_window",
        "softcap",
        "attn_implementation",
    ),
    "transformers.modeling_flash_attention_utils._loaded_implementation": (),
    "transformers.modeling_flash_attention_utils.lazy_import_flash_attention": ("implementation",),
    "transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref": (),
    "transformers.integrations.deepspeed.unset_hf_deepspeed_config": (),
    "transformers.pytorch_utils.Conv1D": (),
    "transformers.utils.is_kernels_available": (),
    "transformers.utils.output_capturing.maybe_install_capturing_hooks": ("model",),
    "deepspeed.checkpoint.ds_to_universal.main": ("args",),
    "deepspeed.ops.__compatible_ops__": (),
    "deepspeed.runtime.precision_config.DeepSpeedBF16Config": (),
    "deepspeed.runtime.precision_config.DeepSpeedFP16Config": (),
    "deepspeed.runtime.zero.config.DeepSpeedZeroConfig": (),
    "deepspeed.utils.safe_get_full_fp32_param": ("param",),
}


@pytest.mark.parametrize("path", NAMES)
def test_name_exists(path):
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if NAMES[path]:
        assert set(NAMES[path]) <= set(inspect.signature(found).parameters)


def overrides():
    return [
        name
        for name, member in vars(ForecastTrainer).items()
        # neither __init__, whose arguments are ours, nor what Python adds to a class
        if inspect.isfunction(member) and not name.startswith("__") and hasattr(Trainer, name)
    ]


@pytest.mark.parametrize("name", overrides())
def test_override_takes_what_the_trainer_passes(name):
    """Every argument of the Trainer's own method, with the same name and in the same position."""
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (ForecastTrainer, Trainer))
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values()):
        return
    assert list(ours)[: len(theirs)] == list(theirs)


def test_overrides_of_private_methods_are_still_called():
    """If the Trainer drops a private method, our override becomes dead code without an error."""
    private = {name for name in overrides() if name.startswith("_")}
    assert private == {
        "_get_train_sampler",
        "_maybe_log_save_evaluate",
        "_save_checkpoint",
        "_save_optimizer_and_scheduler",
        "_prepare_for_training",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
        "_init_training_state",
        "_load_from_checkpoint",
        "_load_best_model",
        "_prepare_input",
    }
    source = inspect.getsource(Trainer)
    assert not [name for name in private if not re.search(rf"self\.{name}\b", source)]


def test_whole_models_puts_back_what_was_announced(monkeypatch):
    announced = object()
    monkeypatch.setattr(integration, "_hf_deepspeed_config_weak_ref", announced)
    with whole_models():
        assert integration._hf_deepspeed_config_weak_ref is None
    assert integration._hf_deepspeed_config_weak_ref is announced


def test_scheduler_keeps_its_rates_where_the_trainer_resets_them():
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), lambda step: 1.0)
    assert {"base_lrs", "lr_lambdas", "_last_lr", "last_epoch"} <= set(vars(scheduler))


def test_configs_carry_what_attention_reads(tmp_path):
    config = read_backbone_config(random_backbone(tmp_path, "gemma2"), 1)
    assert config.attn_logit_softcapping is not None and config.sliding_window is not None
