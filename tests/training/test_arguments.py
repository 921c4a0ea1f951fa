"""The command line: which source of a setting wins, which options are refused in one line, what a run records."""

import os
from dataclasses import fields
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from llata_fast.cli import report_and_exit
from llata_fast.errors import InputError
from llata_fast.settings import DataSettings, ModelSettings, TrainingSettings
from llata_fast.training import arguments, presets
from llata_fast.training.arguments import (
    ForecastTrainingArguments,
    parse_arguments,
    resolved_settings,
)


@pytest.fixture
def config_file(tmp_path):
    def write(**values):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


@pytest.fixture
def refused(capsys):
    """`refused(*argv)` returns the one line of an error; the exit code must be 2."""

    def run(*argv):
        with pytest.raises(SystemExit) as exit:
            try:
                parse_arguments(list(argv))
            except InputError as error:
                # as train.py does
                report_and_exit(error)
        assert exit.value.code == 2
        output = capsys.readouterr()
        assert output.out == "" and output.err.count("\n") == 1, output.err
        return output.err

    return run


def settings_of(*argv):
    model, data, training = parse_arguments(list(argv))
    return resolved_settings(SimpleNamespace(config=model), data, training)


def test_defaults_then_file_then_flags(config_file):
    path = config_file(context_length=48, dataset="my.csv", learning_rate=0.25, task_loss="mse", columns=["a", "b"])
    model, data, training = parse_arguments(["--config", path, "--context_length", "60", "--learning_rate", "1e-3"])
    assert (model.context_length, training.learning_rate) == (60, 1e-3)
    assert (model.task_loss, data.dataset, data.columns) == ("mse", "my.csv", ["a", "b"])
    assert (model.prediction_length, training.seed) == (ModelSettings.prediction_length, TrainingSettings.seed)


def test_file_and_flags_win_over_a_preset(config_file, monkeypatch):
    monkeypatch.setattr(presets, "TUNED", {"num_layers": 3, "lora_r": 5, "learning_rate": 0.5})
    model, _, training = parse_arguments(
        ["--config", config_file(dataset="etth1", learning_rate=0.25), "--num_layers", "4"]
    )
    assert (model.num_layers, model.lora_r, training.learning_rate) == (4, 5, 0.25)
    assert parse_arguments(["--dataset", "my.csv"])[0].lora_r == 5, "one preset for every series"


def test_a_flag_wins_even_if_it_repeats_a_default(config_file, monkeypatch):
    monkeypatch.setattr(presets, "TUNED", {"lora_r": 5})
    monkeypatch.setitem(presets.PAPER, "ETTh1", {"lora_r": 6})
    path = config_file(dataset="ETTh1", recipe="paper", seed=7)
    assert parse_arguments(["--config", path])[0].lora_r == 6
    model, data, training = parse_arguments(["--config", path, "--recipe", "tuned", "--seed", "2021"])
    assert (model.lora_r, data.recipe, training.seed) == (5, "tuned", 2021)
    model, data, _ = parse_arguments(["--config", path, "--dataset", "Metro"])
    assert data.dataset == "Metro" and model.lora_r == ModelSettings.lora_r, "the paper has none for it"


def test_requested_epochs_win_over_steps_of_a_preset():
    """Even if the preset sets max_steps, which the Trainer prefers."""
    assert parse_arguments(["--dataset", "ETTh1"])[2].max_steps > 0
    training = parse_arguments(["--dataset", "ETTh1", "--num_train_epochs", "2"])[2]
    assert (training.num_train_epochs, training.max_steps) == (2, -1)


def test_wrong_command_lines(refused, config_file, tmp_path):
    misspelt = refused("--contxt_length", "96")
    assert misspelt.endswith("error: unknown option --contxt_length: did you mean --context_length?\n")
    assert refused("--warmup-step=5").endswith("did you mean --warmup_steps?\n"), "the Trainer's, too"
    assert "unknown option contxt_length: did you mean context_length?" in refused(
        "--config", config_file(contxt_length=96)
    )
    assert "unknown option --context_len" in refused("--context_len", "96"), "no abbreviations"
    assert "unknown option stray" in refused("stray")
    assert "--task_loss/--task-loss: invalid choice: 'huber'" in refused("--task_loss", "huber")
    assert "--num_layers/--num-layers: invalid int value: 'six'" in refused("--num_layers", "six")
    assert "num_layers must be at least 1" in refused("--num_layers", "0")
    assert "unknown option skip_channels: did you mean linear_skip?" in refused(
        "--config", config_file(skip_channels=3)
    )
    assert "unknown option config" in refused("--config", config_file(config="other.yaml"))
    assert "config.yaml: argument --task_loss" in refused("--config", config_file(task_loss="huber"))
    for name in ("patience", "learning_rate", "projection_learning_rate", "weight_decay", "seed"):
        assert f"{name} must be at least 0, got -1" in refused(f"--{name}", "-1")
    for nothing in (["--max_steps", "0"], ["--num_train_epochs", "0"], ["--num_train_epochs", "-1"]):
        assert "nothing to train" in refused(*nothing)
    assert "one of mse, mae, loss, got 'f1'" in refused("--metric_for_best_model", "f1")
    assert "report_to nobody: not installed" in refused("--report_to", "nobody")
    assert "IntervalStrategy" in refused("--eval_strategy", "sometimes")
    assert "num_layers must be at least 1" in refused("--config", config_file(num_layers=0))
    assert "No such file" in refused("--config", str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    assert "is not YAML" in refused("--config", str(broken))
    broken.write_bytes(b"\xff\xfe")
    assert "is not YAML" in refused("--config", str(broken))
    broken.write_text("- a\n- b\n")
    assert "must hold a mapping" in refused("--config", str(broken))
    broken.write_text("columns:\n- - 1\n")
    assert "columns cannot be a list of lists" in refused("--config", str(broken))
    broken.write_text("batch_size: [8]\n")
    assert "batch_size takes one value, not a list" in refused("--config", str(broken))


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_layers", "six"),
        ("num_layers", 2.5),
        ("num_layers", True),
        ("num_layers", {"first": 2}),
        ("context_length", [96, 192]),
        ("learning_rate", "fast"),
        ("bf16", "perhaps"),
        ("columns", []),
        ("seed", None),
        ("batch_size", None),
    ],
)
def test_wrong_types_in_the_file(refused, config_file, name, value):
    assert "config.yaml: " in refused("--config", config_file(**{name: value}))


def test_null_in_the_file_means_unset(config_file):
    model, data, training = parse_arguments(
        ["--config", config_file(num_heads=None, columns=None, save_total_limit=None)]
    )
    assert model.num_heads is data.columns is training.save_total_limit is None


def test_numbers_in_the_file_may_be_written_as_text(config_file, tmp_path):
    """YAML reads 1e-3 without a dot as text."""
    path = tmp_path / "config.yaml"
    path.write_text("learning_rate: 1e-3\nlora_alpha: 16\n")
    model, _, training = parse_arguments(["--config", str(path)])
    assert training.learning_rate == 1e-3 and model.lora_alpha == 16.0


def test_batch_size_is_global(refused, monkeypatch):
    def per_device(*argv):
        training = parse_arguments(list(argv))[2]
        return training.per_device_train_batch_size, training.gradient_accumulation_steps

    assert per_device("--batch_size", "48") == (48, 1)
    assert per_device("--batch_size", "48", "--gradient_accumulation_steps", "4") == (12, 4)
    assert per_device("--per_device_train_batch_size", "3", "--gradient_accumulation_steps", "2") == (3, 2)
    message = "batch_size 10 is not a multiple of 1 ranks x 3 accumulation steps"
    assert message in refused("--batch_size", "10", "--gradient_accumulation_steps", "3")
    sizes = ("batch_size", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    for name in sizes:
        assert f"{name} must be at least 1, got 0" in refused(f"--{name}", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "batch_size 10 is not a multiple of 4 ranks x 1 accumulation" in refused("--batch_size", "10")


def test_precision(refused, monkeypatch):
    def precision(*argv):
        training = parse_arguments(["--use_cpu", *argv])[2]
        return training.precision, training.bf16

    for has_bf16, auto in ((True, ("bf16", True)), (False, ("fp32", False))):
        monkeypatch.setattr(arguments, "has_bf16", lambda cpu, has_bf16=has_bf16: has_bf16)
        assert precision() == precision("--precision", "auto") == auto
        assert precision("--precision", "fp32") == ("fp32", False)
        assert precision("--precision", "bf16") == precision("--bf16") == ("bf16", True)
    assert "either precision or bf16/fp16" in refused("--precision", "bf16", "--bf16")
    assert "either precision or bf16/fp16" in refused("--precision", "fp32", "--fp16")
    assert "fp16 needs a GPU" in refused("--fp16", "--use_cpu")
    assert "--precision: invalid choice: 'fp8'" in refused("--precision", "fp8")


def settled(**given):
    settings = {"torch_compile": True, "use_cpu": False, "deepspeed": None, "micro_batch": 8}
    settings |= {"torch_compile_mode": None, "torch_compile_backend": None} | given
    arguments = SimpleNamespace(**settings)
    ForecastTrainingArguments._settle_compilation(arguments)
    return arguments.torch_compile, arguments.torch_compile_mode


@pytest.fixture
def dynamic(monkeypatch):
    monkeypatch.delenv("ACCELERATE_DYNAMO_USE_DYNAMIC", raising=False)
    return lambda: os.environ.get("ACCELERATE_DYNAMO_USE_DYNAMIC")


def test_compiled_steps_are_cuda_graphs_on_a_gpu(dynamic):
    assert settled() == (True, "reduce-overhead")
    assert settled(torch_compile_mode="default") == (True, "default")
    assert settled(use_cpu=True) == settled(deepspeed="zero2.json") == (True, None)


def test_compiled_by_default_where_launches_limit_a_step(dynamic, monkeypatch):
    auto = partial(settled, torch_compile=None)
    # nowhere, until measurements on a GPU show that it pays
    assert auto() == settled(torch_compile=False) == (False, None) and dynamic() is None
    monkeypatch.setattr(arguments, "COMPILED_BELOW", 9)
    assert auto() == (True, "reduce-overhead")
    assert auto(micro_batch=9) == auto(use_cpu=True) == auto(deepspeed="zero2.json") == (False, None)
    # naming a mode turns compilation on
    assert auto(torch_compile_mode="default", use_cpu=True) == (True, "default")


def test_a_compiled_step_has_one_size(dynamic):
    settled()
    assert dynamic() == "false"


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_is_non_reentrant(refused, name):
    if name not in {item.name for item in fields(TrainingArguments)}:
        pytest.skip("a name that this transformers does not have")
    training = parse_arguments([f"--{name}"])[2]
    assert training.gradient_checkpointing and training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert "non-reentrant" in refused(f"--{name}", f"--{name}_kwargs", '{"use_reentrant": true}')


def test_the_best_epoch_is_kept_if_there_is_validation():
    training = parse_arguments([])[2]
    assert training.load_best_model_at_end and training.metric_for_best_model == "mse"
    assert not parse_arguments(["--eval_strategy", "no"])[2].load_best_model_at_end
    assert not parse_arguments(["--save_strategy", "no"])[2].load_best_model_at_end


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--bf16", "--columns", "a", "b", "--lr_scheduler_kwargs", '{"num_cycles": 0.5}', "--report_to", "none"],
        ["--precision", "fp32", "--patch_length", "16", "--patch_stride", "8", "--missing", "mask", "--max_steps", "3"],
        ["--gradient_checkpointing", "--eval_strategy", "no", "--gradient_accumulation_steps", "2", "--seed", "7"],
    ],
    ids=["defaults", "bf16", "patches", "checkpointing"],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing")
def test_recorded_settings_can_be_read_back(config_file, argv):
    settings = settings_of(*argv, "--output_dir", "somewhere")
    again = settings_of("--config", config_file(**settings))
    assert again == settings
    given = parse_arguments([*argv, "--output_dir", "x"])
    read = parse_arguments(["--config", config_file(**settings), "--output_dir", "x"])
    assert read[:2] == given[:2]
    for name, value in given[2].to_dict().items():
        assert read[2].to_dict()[name] == value, name


def test_recorded_settings_are_ours_and_those_given():
    own = {item.name for kind in (ModelSettings, DataSettings) for item in fields(kind)}
    own |= TrainingSettings.__annotations__.keys()
    # these name a run; they do not say how it was made
    own -= {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "trust_checkpoint"}
    assert settings_of("--output_dir", "x").keys() == own
    assert settings_of("--warmup_steps", "5", "--max_grad_norm", "2").keys() == own | {"warmup_steps", "max_grad_norm"}


def test_our_option_names():
    """Scripts and configuration files depend on them."""
    trainers = {item.name for item in fields(TrainingArguments)}
    ours = [item.name for kind in (ModelSettings, DataSettings) for item in fields(kind)]
    ours += [name for name in TrainingSettings.__annotations__ if name not in trainers]
    assert sorted(ours) == [
        "ablation",
        "alignment_decay",
        "alignment_loss",
        "alignment_rank",
        "alignment_weight",
        "attn_implementation",
        "average_decay",
        "backbone",
        "backbone_pass",
        "backbone_seed",
        "base_precision",
        "batch_size",
        "calendar",
        "columns",
        "consistency_loss",
        "consistency_weight",
        "context_length",
        "corpus",
        "data_dir",
        "dataset",
        "date_column",
        "deterministic",
        "dropout",
        "few_shot_percent",
        "held_out_ids",
        "id_column",
        "init",
        "intermediate_size",
        "known_covariates",
        "linear_skip",
        "lora_alpha",
        "lora_dropout",
        "lora_r",
        "missing",
        "na_values",
        "num_heads",
        "num_layers",
        "num_prototypes",
        "overwrite_output_dir",
        "past_covariates",
        "patch_length",
        "patch_stride",
        "patience",
        "precision",
        "prediction_length",
        "projection_learning_rate",
        "quantile_levels",
        "recipe",
        "skip_nonfinite",
        "skip_rows",
        "static_covariates",
        "target",
        "task_loss",
        "trust_checkpoint",
        "trust_rows",
    ]


def test_cpu_ranks_wait_for_each_other_as_long_as_asked(monkeypatch):
    """TrainingArguments alone leaves CPU ranks torch's half hour, whatever ddp_timeout says."""

    class Met(Exception):
        pass

    def meet(**kwargs):
        raise Met(kwargs["timeout"])

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(Met) as met:
        parse_arguments(["--use_cpu", "true", "--ddp_timeout", "20"])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert met.value.args == (timedelta(seconds=20),)
