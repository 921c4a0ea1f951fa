"""The DeepSpeed configurations do what their names say, and contain no key that DeepSpeed silently ignores."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
NAMES = ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]

# DeepSpeed refuses unknown keys inside a section but accepts any at the top: "zero_optimisation" would mean stage 0
TOP_LEVEL = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
    "zero_optimization",
    "zero_force_ds_cpu_optimizer",
}
# TrainingArguments decide these: a literal that disagrees ends the run
OWNED_BY_THE_TRAINER = [
    ("train_batch_size",),
    ("train_micro_batch_size_per_gpu",),
    ("gradient_accumulation_steps",),
    ("gradient_clipping",),
    ("bf16", "enabled"),
    ("fp16", "enabled"),
]


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_every_configuration_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_configuration(name):
    config = read(name)
    assert set(config) <= TOP_LEVEL
    for path in OWNED_BY_THE_TRAINER:
        value = config
        for key in path:
            value = value[key]
        assert value == "auto", path
    zero = config["zero_optimization"]
    assert zero["stage"] == int(name.removeprefix("zero")[0])
    offloaded = {key for key in zero if key.startswith("offload_")}
    expected = {"offload_optimizer"} if "offload" in name else set()
    assert offloaded == expected | ({"offload_param"} if name == "zero3_offload" else set())
    # otherwise DeepSpeed compiles its own optimizer, which needs nvcc on a GPU
    assert config.get("zero_force_ds_cpu_optimizer", True) != bool(offloaded)
    # a checkpoint would contain empty tensors
    # it would also gather the frozen base
    assert "stage3_gather_16bit_weights_on_model_save" not in zero
