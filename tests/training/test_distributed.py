"""Training is the same for any ranks, accumulation steps, ZeRO stage, activation checkpointing or interruption.

All cases run on two CPU ranks in one launch (`distributed_cases.py`) and are compared with one process at the same
global batch size.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import random_backbone, write_series
from training.distributed_cases import train

from llata_fast.data import read_wide_csv, split_windows
from llata_fast.errors import InputError
from llata_fast.evaluation.baselines import score
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.run_folder import RunFolder
from llata_fast.training.deepspeed_state import reshard

pytestmark = pytest.mark.usefixtures("plain_ops_throughout")

ROOT = Path(__file__).resolve().parents[2]
L, H, STEPS = 12, 6, 3
# the test split has 62 + H rows, that is 63 windows, which neither 2 ranks nor batches of 4 divide
ROWS = 340

# name -> flags added to the common ones; plain runs come first, because accelerate keeps DeepSpeed's state
CASES = {
    "ddp": [],
    "ddp, accumulation": ["--gradient_accumulation_steps", "2"],
    "ddp, checkpointing": ["--gradient_checkpointing"],
    "zero1": ["--deepspeed", "zero1"],
    "zero2": ["--deepspeed", "zero2"],
    "zero2, accumulation": ["--deepspeed", "zero2", "--gradient_accumulation_steps", "2"],
    "zero2, checkpointing": ["--deepspeed", "zero2", "--gradient_checkpointing"],
    "zero3": ["--deepspeed", "zero3"],
    "zero3, accumulation": ["--deepspeed", "zero3", "--gradient_accumulation_steps", "2"],
    "zero3, checkpointing": ["--deepspeed", "zero3", "--gradient_checkpointing"],
    "zero2_offload": ["--deepspeed", "zero2_offload"],
    "zero3_offload": ["--deepspeed", "zero3_offload"],
}
# on a panel whose numbers and categories are known, past or static covariates
COVARIATES = {f"{name}, covariates": CASES[name] for name in ("zero2", "zero3, checkpointing")}
RESUMED = ["ddp", "zero2", "zero3"]
BF16 = ZERO = ["zero2", "zero3"]
ALL = [*CASES, *(f"{case}, bf16" for case in BF16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of all runs; contains a series whose gaps are spread unevenly over windows and ranks."""
    folder = tmp_path_factory.mktemp("distributed")
    table = pd.read_csv(write_series(folder / "series.csv", ROWS))
    table.iloc[np.random.default_rng(0).integers(ROWS, size=20), 1] = np.nan
    table.to_csv(folder / "series.csv", index=False)
    parts = [
        table.rename(columns={"c0": "target"}).assign(item=item, item_name=item, week=table.index % 7) for item in "ab"
    ]
    pd.concat(parts).astype({"week": str}).to_parquet(folder / "panel.parquet")
    return folder


@pytest.fixture(scope="module")
def panel_settings(folder, settings):
    """Like `settings`, for a panel with covariates."""
    names = {"dataset": str(folder / "panel.parquet"), "id_column": "item", "target": "target"}
    roles = {"known_covariates": "week", "past_covariates": "c1", "static_covariates": "item_name"}
    return settings | names | roles


@pytest.fixture(scope="module")
def settings(folder):
    """Settings for three training steps of 8 windows, each logged, checkpointed and validated."""
    return {
        "dataset": str(folder / "series.csv"),
        "missing": "mask",
        "backbone": random_backbone(folder, "llama"),
        "context_length": L,
        "prediction_length": H,
        "num_layers": 2,
        "num_prototypes": 9,
        "intermediate_size": 20,
        "dropout": 0.0,
        "lora_dropout": 0.0,
        "projection_learning_rate": 2e-3,
        "batch_size": 8,
        "max_steps": STEPS,
        "precision": "fp32",
        "use_cpu": True,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 5,
        "per_device_eval_batch_size": 4,
        # no linear start, so that only training steps decide
        "recipe": "paper",
        "report_to": "none",
        "disable_tqdm": True,
    }


def flags(settings, output_dir, *more):
    named = [f"--{name}={value}" for name, value in settings.items()]
    more = [f"{ROOT}/ds_configs/{flag}.json" if flag.startswith("zero") else flag for flag in more]
    return [*named, "--output_dir", str(output_dir), *more]


@pytest.fixture(scope="module")
def single_panel(folder, panel_settings):
    train(flags(panel_settings | {"per_device_eval_batch_size": 256}, folder / "single, covariates"))
    return folder / "single, covariates"


@pytest.fixture(scope="module")
def single(folder, settings):
    """The reference: one process, one micro-batch per step, all evaluation windows in one batch."""
    train(flags(settings | {"per_device_eval_batch_size": 256}, folder / "single"))
    train(flags(settings, folder / "single, accumulation", "--gradient_accumulation_steps", "2"))
    return folder / "single"


def run_cases(folder, cases, num_ranks, launch, free_port):
    path = folder / f"cases-{num_ranks}-{len(cases)}.json"
    path.write_text(json.dumps(cases))
    script = ROOT / "tests" / "training" / "distributed_cases.py"
    output = launch("deepspeed", "--num_gpus", num_ranks, "--master_port", free_port, script, path, timeout=580)
    # torch warns if every step searches for parameters without a gradient
    assert "find_unused_parameters" not in output


def resharded(run):
    """A resharded copy of a run's first checkpoint, so that other tests can use the run itself."""
    checkpoint = run.with_name(f"{run.name}, resharded") / "checkpoint-1"
    shutil.copytree(run / "checkpoint-1", checkpoint)
    reshard(checkpoint)
    return str(checkpoint)


@pytest.fixture(scope="module")
def alone(folder, settings, launch, free_port):
    """Folder of DeepSpeed runs on one rank, with their first checkpoints resharded."""
    run_cases(
        folder,
        [flags(settings, folder / f"{stage}, alone", "--deepspeed", stage) for stage in ZERO],
        1,
        launch,
        free_port,
    )
    for stage in ZERO:
        resharded(folder / f"{stage}, alone")
    return folder


@pytest.fixture(scope="module")
def fewer(ranks, settings, launch, free_port):
    """Folder of runs begun on two ranks and resumed on one, under the same and the other ZeRO stage."""
    cases = []
    for before in ZERO:
        checkpoint = resharded(ranks / before)
        for after in ZERO:
            resume = ["--resume_from_checkpoint", checkpoint]
            cases.append(flags(settings, ranks / f"{before} to {after}, 2 to 1", "--deepspeed", after, *resume))
    run_cases(ranks, cases, 1, launch, free_port)
    return ranks


@pytest.fixture(scope="module")
def ranks(folder, settings, panel_settings, alone, launch, free_port):
    """Folder of all runs on two ranks."""
    cases: list = []
    for name, more in CASES.items():
        cases.append(flags(settings, folder / name, *more))
        if name in RESUMED:
            resume = ["--resume_from_checkpoint", str(folder / name / "checkpoint-1")]
            cases.append(flags(settings, folder / f"{name}, resumed", *more, *resume))
    cases += [flags(panel_settings, folder / name, *more) for name, more in COVARIATES.items()]
    cases += [flags(settings | {"precision": "bf16"}, folder / f"{name}, bf16", *CASES[name]) for name in BF16]
    for before in ZERO:
        for after in ZERO:
            resume = ["--resume_from_checkpoint", str(folder / f"{before}, alone, resharded" / "checkpoint-1")]
            cases.append(flags(settings, folder / f"{before} to {after}, 1 to 2", "--deepspeed", after, *resume))
    run_cases(folder, cases, 2, launch, free_port)
    return folder


def history(run, *names, steps=STEPS):
    """Values [steps, names] that the Trainer logged in training."""
    state = json.loads(Path(run, f"checkpoint-{steps}", "trainer_state.json").read_text())
    return np.array([[entry[name] for name in names] for entry in state["log_history"] if names[0] in entry])


def scores(run):
    return json.loads(Path(run, "metrics.json").read_text())["test"]


def series_of(folder):
    return read_wide_csv(folder / "series.csv", missing="mask")


def assert_equal_training(run, reference, relative=1e-5):
    names = ("loss", "task_loss", "consistency_loss", "alignment_loss", "grad_norm", "learning_rate")
    ours = history(run, *names)
    assert ours.shape == (STEPS, len(names)) and np.isfinite(ours).all()
    np.testing.assert_allclose(ours, history(reference, *names), rtol=relative)
    np.testing.assert_allclose(
        history(run, "eval_mse", "eval_mae"), history(reference, "eval_mse", "eval_mae"), rtol=relative
    )


def test_accumulation_in_one_process(single, folder):
    assert_equal_training(folder / "single, accumulation", single)


def test_accumulation_of_a_batch_that_is_not_full(folder, settings):
    """An epoch of 220 training windows has four steps; the last one has 28 windows, 16 and 12."""
    assert len(split_windows(series_of(folder), L, H).train) == 220
    epoch = settings | {"batch_size": 64, "max_steps": 4}
    train(flags(epoch, folder / "epoch"))
    train(flags(epoch, folder / "epoch, accumulation", "--gradient_accumulation_steps", "4"))
    names = ("loss", "task_loss", "consistency_loss", "alignment_loss", "grad_norm")
    whole, parts = (history(folder / run, *names, steps=4) for run in ("epoch", "epoch, accumulation"))
    assert len(whole) == 4
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_the_reference_training_is_not_trivial(single):
    """Losses fall, all three contribute, and gradients are not clipped to a constant."""
    loss, task, alignment, norm = history(single, "loss", "task_loss", "alignment_loss", "grad_norm").T
    assert loss[0] > loss[-1] and (loss > 1.001 * task).all() and (alignment > 0).all()
    assert len(set(norm.tolist())) == STEPS


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case, ranks, single):
    assert_equal_training(ranks / case, single)


@pytest.mark.parametrize("case", COVARIATES)
def test_two_ranks_train_covariates_as_one(case, ranks, single_panel):
    assert_equal_training(ranks / case, single_panel)
    saved, expected = (load_file(run / "model.safetensors") for run in (ranks / case, single_panel))
    learned = [name for name in expected if name.startswith("covariates.")]
    assert len(learned) == 6
    for name in learned:
        torch.testing.assert_close(saved[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_scores_do_not_depend_on_ranks_or_batches(case, ranks, single):
    """63 windows on two ranks in batches of 4, or in one process in one batch."""
    assert len(split_windows(series_of(ranks), L, H).test) == 63
    ours, theirs = scores(ranks / case), scores(single)
    for name in ("mse", "mae"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
        for channel, errors in theirs["per_channel"].items():
            assert ours["per_channel"][channel][name] == pytest.approx(errors[name], rel=1e-5)


@pytest.mark.parametrize("case", ALL)
def test_the_saved_run_is_the_scored_one(case, ranks, single):
    saved, expected = (load_file(run / "model.safetensors") for run in (ranks / case, single))
    assert {name: tensor.shape for name, tensor in saved.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    # prototypes are computed before ZeRO-3 partitions the weights
    prototypes = expected["prototypes"]
    assert prototypes.abs().max() > 0
    if case in CASES:
        assert torch.equal(saved["prototypes"], prototypes)
    # bf16 runs save the optimizer's fp32 values
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    rounded = [torch.equal(tensor, tensor.bfloat16().float()) for name, tensor in saved.items() if "lora_a" in name]
    assert rounded and not any(rounded)
    # a lost weight would show in the forecasts
    test = split_windows(series_of(ranks), L, H).test
    again = score(Forecaster.from_pretrained(ranks / case), test, ["c0", "c1", "c2"])
    assert again["mse"] == pytest.approx(scores(ranks / case)["mse"], rel=1e-5 if case in CASES else 0.02)


def trained_steps(run):
    """Steps whose loss this training logged itself, without those of the run it resumed."""
    return [record["step"] for record in RunFolder(run).read_log() if "loss" in record]


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_training_repeats_every_loss(case, ranks):
    """Bit for bit, from the first step's checkpoint."""
    names = ("loss", "grad_norm", "learning_rate")
    assert np.array_equal(history(ranks / f"{case}, resumed", *names), history(ranks / case, *names))
    assert scores(ranks / f"{case}, resumed") == scores(ranks / case)
    assert all(step > 1 for step in trained_steps(ranks / f"{case}, resumed")), "it began anew"


@pytest.mark.parametrize("change", ["1 to 2", "2 to 1"])
@pytest.mark.parametrize("after", ZERO)
@pytest.mark.parametrize("before", ZERO)
def test_resuming_works_with_other_ranks_and_stages(before, after, change, ranks, fewer, single):
    """From the first step's checkpoint; the projections' learning rate differs from the others'."""
    run = ranks / f"{before} to {after}, {change}"
    assert_equal_training(run, single)
    assert all(step > 1 for step in trained_steps(run)), "it began anew"
    assert scores(run)["mse"] == pytest.approx(scores(single)["mse"], rel=1e-5)


def test_nothing_to_reshard(ranks, tmp_path):
    for folder in (tmp_path, tmp_path / "absent", ranks / "ddp" / "checkpoint-1"):
        with pytest.raises(InputError, match="holds no DeepSpeed checkpoint"):
            reshard(folder)
    with pytest.raises(InputError, match="already resharded"):
        reshard(ranks / "zero2, alone, resharded" / "checkpoint-1")
    torn = tmp_path / "checkpoint-1"
    shutil.copytree(ranks / "zero2" / "checkpoint-1", torn)
    next(torn.glob("*/*_optim_states.pt")).write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be converted"):
        reshard(torn)
    assert [path.name for path in torn.glob("*universal*")] == []


@pytest.mark.parametrize("case", ZERO)
def test_checkpoints_contain_only_trained_weights(case, ranks):
    """Neither DeepSpeed's files nor ours contain a weight of the base."""
    checkpoint = ranks / case / "checkpoint-3"
    trained = load_file(checkpoint / "model.safetensors").keys()
    for path in checkpoint.glob("*/*_model_states.pt"):
        states = torch.load(path, weights_only=False)
        assert set(states["module"]) <= set(trained) and not states.get("frozen_param_fragments")


@pytest.mark.parametrize("case", ALL)
def test_series_and_targets_stay_fp32(case, ranks):
    seen = json.loads((ranks / case / "seen.json").read_text())
    assert seen["past_values"] == seen["future_values"] == ["torch.float32"]
    # test scores also use forecasts in the series' float64 units
    for name in ("targets", "forecasts"):
        assert {"torch.float32"} <= set(seen[name]) <= {"torch.float32", "torch.float64"}


@pytest.mark.parametrize("case", BF16)
def test_bf16_training_stays_close(case, ranks, single):
    """DeepSpeed's bf16 also casts the weights. The pass must really have run in bf16."""
    ours, theirs = (history(run, "loss") for run in (ranks / f"{case}, bf16", single))
    np.testing.assert_allclose(ours, theirs, rtol=0.05)
    assert not np.allclose(ours, theirs, rtol=1e-5)
    assert scores(ranks / f"{case}, bf16")["mse"] == pytest.approx(scores(single)["mse"], rel=0.05)


def train_and_resume(folder, settings, name, step=1, steps=STEPS):
    """Train without interruption, then resume from the checkpoint of `step`; returns what both logged."""
    settings = settings | {"max_steps": steps}
    train(flags(settings, folder / name))
    checkpoint = str(folder / name / f"checkpoint-{step}")
    train(flags(settings, folder / f"{name}, resumed", "--resume_from_checkpoint", checkpoint))
    runs = folder / name, folder / f"{name}, resumed"
    assert all(later > step for later in trained_steps(runs[1])), "it began anew"
    return runs


@pytest.mark.parametrize(
    "noise", [{"dropout": 0.3, "lora_dropout": 0.3}, {"average_decay": 0.9}], ids=["dropout", "average"]
)
def test_the_rest_of_the_state_resumes(noise, folder, settings):
    """A checkpoint includes the random state and, with averaging, the weights that are averaged."""
    whole, resumed = train_and_resume(folder, settings | noise, "-".join(noise))
    for names in (("loss", "grad_norm"), ("eval_mse", "eval_mae")):
        assert np.array_equal(history(whole, *names), history(resumed, *names))
    assert scores(whole) == scores(resumed)


def test_a_finished_run_is_not_trained_further(folder, settings):
    whole, resumed = train_and_resume(folder, settings | {"average_decay": 0.9}, "finished", step=STEPS)
    assert not trained_steps(resumed)
    assert scores(whole) == scores(resumed)


def test_patience_resumes(folder, settings):
    """Nothing is learned, so the second evaluation without progress ends both runs; the checkpoint had counted one."""
    still = {"learning_rate": 0, "projection_learning_rate": 0, "patience": 2}
    runs = train_and_resume(folder, settings | still, "patience", step=2, steps=6)
    for run in runs:
        last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        assert json.loads((last / "trainer_state.json").read_text())["global_step"] == 3


def test_plain_python(folder, settings, single, launch):
    """The program as a user starts it, with a settings file."""
    path = folder / "plain.yaml"
    path.write_text(yaml.safe_dump(settings))
    output = launch("python", "train.py", "--config", path, "--output_dir", folder / "plain")
    assert "seasonal_naive" in output and f"predict {folder / 'plain'}" in output
    assert {path.name for path in (folder / "plain").iterdir()} >= {"forecast.png", "metrics.json", "run.yaml"}
    assert_equal_training(folder / "plain", single)


def test_the_literal_deepspeed_command(folder, settings, single, launch, free_port):
    """`deepspeed train.py --deepspeed ds_configs/zero2.json` with small settings and a free port."""
    path = folder / "literal.yaml"
    settings = {name: value for name, value in settings.items() if name != "use_cpu"}
    path.write_text(yaml.safe_dump(settings | {"output_dir": str(folder / "literal")}))
    command = ("deepspeed", "--master_port", free_port, "train.py", "--deepspeed", "ds_configs/zero2.json")
    compiled = folder / "compiled"
    launch(*command, "--config", path, env={"TORCH_EXTENSIONS_DIR": str(compiled)})
    # compiling DeepSpeed's communication extension for CPU ranks takes a minute, and a killed build leaves its lock
    assert torch.cuda.is_available() or not compiled.exists()
    # on a GPU the arithmetic differs from the CPU's
    assert_equal_training(folder / "literal", single, relative=1e-3)
