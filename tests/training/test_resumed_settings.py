"""Every setting that is changed on resume is refused by name, applied, or has no effect on the results."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import random_backbone, write_series
from training.distributed_cases import train

from llata_fast.config import LlataConfig
from llata_fast.errors import InputError
from llata_fast.run_folder import RunFolder
from llata_fast.settings import DataSettings, ModelSettings, all_fields
from llata_fast.training.presets import TUNED
from llata_fast.training.resuming import check_resumes

# another valid value for every field that the weights depend on
BINDING = {
    "backbone": "random:gpt2",
    "num_layers": 1,
    "context_length": 13,
    "prediction_length": 7,
    "patch_length": 4,
    "patch_stride": 2,
    "num_prototypes": 8,
    "num_heads": 2,
    "intermediate_size": 21,
    "lora_r": 2,
    "lora_alpha": 16.0,
    "alignment_rank": 5,
    "linear_skip": False,
    "ablation": "no_text_branch",
    "backbone_seed": 1,
    "dataset": "other.csv",
    "date_column": "time",
    "columns": ["c0"],
    "corpus": "other",
    "id_column": "item",
    "target": ["load"],
    "known_covariates": ["price"],
    "past_covariates": ["visits"],
    "static_covariates": ["store"],
    "calendar": ["weekday"],
    "quantile_levels": [0.1, 0.5, 0.9],
}
# changes that show in the next step's weights
TRAINED = {
    "dropout": 0.3,
    "lora_dropout": 0.3,
    "task_loss": "l1",
    "consistency_loss": "l1",
    "alignment_loss": "l1",
    "consistency_weight": 0.5,
    "alignment_weight": 0.5,
    "alignment_decay": 0.1,
    "few_shot_percent": 50.0,
    # has no preset for a file, and so has other losses
    "recipe": "paper",
    "seed": 7,
    "batch_size": 4,
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 0.01,
    "projection_learning_rate": 0.01,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.5,
    "adam_beta2": 0.5,
    "average_decay": 0.5,
    "precision": "bf16",
}
# changes that do not show in one step's weights: when it ends, what is kept, how it would start
UNSEEN = {
    "missing": "mask",
    "na_values": ["none"],
    "trust_rows": True,
    "skip_nonfinite": 3,
    "num_train_epochs": 7.0,
    "patience": 1,
    "eval_strategy": "no",
    "eval_steps": 2.0,
    "save_strategy": "no",
    "save_steps": 2.0,
    "metric_for_best_model": "mae",
    "greater_is_better": True,
}
MACHINE = {
    "data_dir": ".",
    "backbone_pass": "two_pass",
    "attn_implementation": "eager",
    "overwrite_output_dir": True,
    "trust_checkpoint": True,
    "deterministic": True,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 3,
    "save_total_limit": 1,
    "logging_steps": 1,
    "logging_nan_inf_filter": True,
}
ELSEWHERE = {
    "output_dir": "every case here has its own",
    "resume_from_checkpoint": "every case here gives it",
    "report_to": "a logger writes what is logged, and no other is installed everywhere",
    "deepspeed": "test_distributed.py: strategies and ranks",
    "torch_compile": "test_throughput.py and the GPU suite",
    "use_cpu": "true where there is no GPU",
    "base_precision": "takes a CUDA device: test_quantised.py",
    "load_best_model_at_end": "test_resuming.py",
    "skip_rows": "takes a file with rows above its header: tests/data",
    "held_out_ids": "takes a panel: tests/forecasting/test_covariates.py",
    "init": "where a training starts, and a resumed one does not",
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run of two steps, to be resumed from its checkpoint after the first step."""
    folder = tmp_path_factory.mktemp("resumed")
    settings = {
        "backbone": random_backbone(folder),
        "num_layers": 2,
        "context_length": 12,
        "prediction_length": 6,
        "num_prototypes": 9,
        "num_heads": 4,
        "intermediate_size": 20,
        "linear_skip": True,
        "dropout": 0.0,
        "lora_dropout": 0.0,
        "dataset": str(write_series(folder / "series.csv", rows=120)),
        "batch_size": 8,
        "max_steps": 2,
        "precision": "fp32",
        "report_to": "none",
        "use_cpu": True,
        "load_best_model_at_end": False,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        go(settings, folder / "whole")
        settings["resume_from_checkpoint"] = folder / "whole" / "checkpoint-1"
        go(settings, folder / "unchanged")
        yield settings


def go(settings, output_dir):
    shutil.rmtree(output_dir, ignore_errors=True)
    flags = []
    for name, value in (settings | {"output_dir": output_dir}).items():
        flags += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    train(flags)


def resumed(settings, folder, **changes):
    """Weights and settings of a run resumed with `changes`."""
    go(settings | changes, folder / "run")
    return load_file(folder / "run" / "model.safetensors"), yaml.safe_load((folder / "run" / "run.yaml").read_text())


def folder_of(settings):
    """Folder of the run that was resumed without changes."""
    return settings["resume_from_checkpoint"].parent.parent / "unchanged"


@pytest.fixture(scope="module")
def unchanged(settings):
    return load_file(folder_of(settings) / "model.safetensors")


def test_every_field_is_here():
    of = {"shapes": BINDING, "meaning": BINDING, "training": TRAINED | UNSEEN, "machine": MACHINE}
    for item in all_fields():
        assert item.name in ELSEWHERE or item.name in of[item.metadata["changes"]], item.name


def test_a_resume_without_changes_repeats_the_run(settings, unchanged):
    whole = load_file(settings["resume_from_checkpoint"].parent / "model.safetensors")
    assert all(torch.equal(whole[name], unchanged[name]) for name in whole)


@pytest.mark.parametrize("name", [item.name for item in all_fields() if item.name in BINDING])
def test_changes_that_the_weights_depend_on_are_refused(settings, name):
    checkpoint = settings["resume_from_checkpoint"]
    config, data = LlataConfig.from_pretrained(checkpoint), DataSettings(dataset=settings["dataset"])
    check_resumes(config, data, checkpoint)
    target = data if name in asdict(data) else config
    setattr(target, name, BINDING[name])
    if name == "backbone":
        # fingerprints distinguish bases; without one their names do
        config.backbone_fingerprint = None
    with pytest.raises(InputError, match=f"checkpoint-1 was trained with {name} .*, not "):
        check_resumes(config, data, checkpoint)


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: fields["backbone_config"].update(rms_norm_eps="1e-06"),
        lambda fields: fields.update(backbone_config=7),
        lambda fields: fields.update(num_layers=[1]),
    ],
)
def test_settings_of_wrong_types_are_refused_in_one_line(settings, tmp_path, damage):
    checkpoint = settings["resume_from_checkpoint"]
    config, data = LlataConfig.from_pretrained(checkpoint), DataSettings(dataset=settings["dataset"])
    fields = json.loads((checkpoint / "config.json").read_text())
    damage(fields)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError) as refused:
        check_resumes(config, data, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", TRAINED)
def test_changes_to_the_coming_steps_are_applied(settings, unchanged, tmp_path, name):
    weights, stored = resumed(settings, tmp_path, **{name: TRAINED[name]})
    assert stored[name] == TRAINED[name]
    assert any(not torch.equal(weights[key], unchanged[key]) for key in unchanged)


def test_changes_without_immediate_effect_are_recorded(settings, unchanged, tmp_path):
    weights, stored = resumed(settings, tmp_path, **UNSEEN)
    assert {name: stored[name] for name in UNSEEN} == UNSEEN
    assert all(torch.equal(weights[key], unchanged[key]) for key in unchanged)


def test_settings_of_the_machine_do_not_change_results(settings, tmp_path):
    """Compares loss and scores, not weights: Adam turns the rounding of a near-zero gradient into a full step."""
    resumed(settings, tmp_path, **MACHINE)
    before, after = (RunFolder(folder).read_metrics() for folder in (folder_of(settings), tmp_path / "run"))
    assert after["training"]["loss"] == pytest.approx(before["training"]["loss"], rel=1e-5)
    for name in ("mse", "mae"):
        assert after["test"][name] == pytest.approx(before["test"][name], rel=1e-4)


def test_a_refused_change_ends_the_program(settings, tmp_path, capfd):
    with pytest.raises(SystemExit) as exit:
        resumed(settings, tmp_path, lora_alpha=16.0)
    assert exit.value.code == 2 and "checkpoint-1 was trained with lora_alpha 32.0, not 16.0" in capfd.readouterr().err


def test_every_model_setting_is_in_a_checkpoint(settings):
    stored = LlataConfig.from_pretrained(settings["resume_from_checkpoint"])
    for name, value in asdict(ModelSettings()).items():
        assert getattr(stored, name) == (TUNED | settings).get(name, value) or value is None, name
