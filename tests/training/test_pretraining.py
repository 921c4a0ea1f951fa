"""Training on a mixture of corpora is the same on any number of ranks, under ZeRO, and after an interruption."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import random_backbone, write_series
from training.distributed_cases import train

from llata_fast.cli import FAILED
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.data.mixture import Mixture, WindowSizes, read_mixture
from llata_fast.data.synthetic import SyntheticSettings, synthesize
from llata_fast.linear import LinearSkip

pytestmark = pytest.mark.usefixtures("plain_ops_throughout")

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
SIZES = WindowSizes(context=32, horizon=8, shortest_context=8)

CASES = {
    "ddp": [],
    "zero2": ["--deepspeed", f"{ROOT}/ds_configs/zero2.json"],
    "zero3": ["--deepspeed", f"{ROOT}/ds_configs/zero3.json"],
}
RESUMED = ["zero2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A mixture of synthetic series, short series with gaps, and a held-out set."""
    folder = tmp_path_factory.mktemp("pretraining")
    rng = np.random.default_rng(0)
    short = []
    for number in range(30):
        values = 1e4 * rng.normal(size=(1, int(rng.integers(5, 40)))).cumsum(1)
        values[rng.random(values.shape) < 0.2] = np.nan
        short.append(CorpusSeries(f"s{number}", np.datetime64("2020-01-01"), "ME", values.astype(np.float32)))
    with new_corpus(folder / "short", CorpusLayout()) as partial:
        write_shards(partial, "data", short, CorpusLayout())
    synthesize(SyntheticSettings(20, 200), folder / "made")
    synthesize(SyntheticSettings(5, 200, seed=1), folder / "unseen")
    mixture = [{"path": "short", "sample": "uniform"}, {"path": "made", "weight": 2}, {"path": "unseen", "weight": 0}]
    (folder / "mixture.yaml").write_text(yaml.safe_dump(mixture))
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    """Settings for a few training steps of 8 windows, each logged, checkpointed and validated."""
    return {
        "corpus": str(folder / "mixture.yaml"),
        "backbone": random_backbone(folder, "llama"),
        "context_length": 32,
        "prediction_length": 8,
        "patch_length": 8,
        "patch_stride": 8,
        "num_layers": 2,
        "num_prototypes": 9,
        "intermediate_size": 20,
        "batch_size": 8,
        "max_steps": STEPS,
        "precision": "fp32",
        "use_cpu": True,
        "logging_steps": 1,
        "eval_steps": 1,
        "save_steps": 1,
        "save_total_limit": 9,
        "report_to": "none",
        "disable_tqdm": True,
    }


def flags(settings, output_dir, *more):
    return [*(f"--{name}={value}" for name, value in settings.items()), "--output_dir", str(output_dir), *more]


@pytest.fixture(scope="module")
def single(folder, settings):
    """The reference: one process, one micro-batch per step."""
    train(flags(settings, folder / "single"))
    return folder / "single"


@pytest.fixture(scope="module")
def ranks(folder, settings, launch, free_port):
    """Folder of all runs on two ranks."""
    cases = []
    for name, more in CASES.items():
        cases.append(flags(settings, folder / name, *more))
        if name in RESUMED:
            resume = ["--resume_from_checkpoint", str(folder / name / "checkpoint-2")]
            cases.append(flags(settings, folder / f"{name}, resumed", *more, *resume))
    (folder / "cases.json").write_text(json.dumps(cases))
    script = ROOT / "tests" / "training" / "distributed_cases.py"
    launch("deepspeed", "--num_gpus", 2, "--master_port", free_port, script, folder / "cases.json", timeout=580)
    return folder


def history(run, *names):
    """Values [steps, names] that the Trainer logged in training."""
    state = json.loads(Path(run, f"checkpoint-{STEPS}", "trainer_state.json").read_text())
    return np.array([[entry[name] for name in names] for entry in state["log_history"] if names[0] in entry])


TERMS = ("loss", "task_loss", "quantile_loss", "consistency_loss", "alignment_loss", "grad_norm")


def assert_equal_training(run, reference, relative=1e-5):
    ours = history(run, *TERMS)
    assert ours.shape == (STEPS, len(TERMS)) and np.isfinite(ours).all()
    np.testing.assert_allclose(ours, history(reference, *TERMS), rtol=relative)
    names = ("eval_mse", "eval_mae")
    np.testing.assert_allclose(history(run, *names), history(reference, *names), rtol=relative)


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def test_accumulation_trains_as_one_batch(single, folder, settings):
    train(flags(settings, folder / "accumulation", "--gradient_accumulation_steps", "2"))
    assert_equal_training(folder / "accumulation", single)


def test_every_set_is_scored_including_the_held_out_one(single):
    metrics = metrics_of(single)
    assert set(metrics["test"]["per_set"]) == {"short", "made", "unseen"}
    assert metrics["test"]["per_set"]["unseen"]["windows"] == 5
    ratios = [row["mase"] / row["naive_mase"] for row in metrics["test"]["per_set"].values()]
    assert metrics["test"]["relative_mase"] == pytest.approx(np.exp(np.mean(np.log(ratios))))
    assert metrics["dataset"].endswith("mixture.yaml")


def test_a_step_weights_observed_targets_equally(single):
    """The loss is a mean over observed targets: if padding counted, it would be far below one unit."""
    loss, task, quantile = history(single, "loss", "task_loss", "quantile_loss").T
    assert (task > 0.3).all() and (quantile > 0.1).all() and (loss > task).all()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case, ranks, single):
    assert_equal_training(ranks / case, single)
    ours, theirs = (metrics_of(run)["test"] for run in (ranks / case, single))
    for name, row in theirs["per_set"].items():
        assert ours["per_set"][name] == pytest.approx(row, rel=1e-4)


@pytest.mark.parametrize("case", RESUMED)
def test_two_ranks_resume_bit_for_bit(case, ranks):
    assert_equal_training(ranks / f"{case}, resumed", ranks / case, relative=1e-6)


def test_a_killed_run_resumes_bit_for_bit(single, folder, settings):
    """In the middle of a mixture: a kill after step 2 leaves that step's checkpoint."""
    killed = folder / "killed"
    shutil.copytree(single, killed)
    for name in ("checkpoint-3", "checkpoint-4"):
        shutil.rmtree(killed / name)
    for name in ("metrics.json", "manifest.json", "model.safetensors", "preprocessor_config.json"):
        (killed / name).unlink()
    train(flags(settings, killed, "--resume_from_checkpoint", "last"))
    ours, theirs = (load_file(run / "model.safetensors") for run in (killed, single))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    np.testing.assert_array_equal(history(killed, *TERMS), history(single, *TERMS))
    assert metrics_of(killed)["test"] == metrics_of(single)["test"]


def test_a_resumed_run_keeps_its_mixture(single, folder, settings, capsys):
    """Its corpora may have moved, but another weight or another corpus of the same name is refused."""
    moved, other = folder / "moved", folder / "other"
    for copy in (moved, other):
        copy.mkdir()
        for name in ("short", "made", "unseen"):
            shutil.copytree(folder / name, copy / name)
        shutil.copy(folder / "mixture.yaml", copy)
    shutil.rmtree(other / "made")
    synthesize(SyntheticSettings(20, 200, seed=2), other / "made")
    weights = folder / "weights.yaml"
    weights.write_text((folder / "mixture.yaml").read_text().replace("weight: 2", "weight: 3"))
    for corpus, names in ((weights, "another state of made"), (other / "mixture.yaml", "another state of made")):
        run = folder / "resumed elsewhere"
        shutil.copytree(single, run, dirs_exist_ok=True)
        written = yaml.safe_load((run / "run.yaml").read_text()) | {"corpus": str(corpus)}
        (run / "run.yaml").write_text(yaml.safe_dump(written))
        with pytest.raises(SystemExit) as stopped:
            train(flags(settings | {"corpus": str(corpus)}, run, "--resume_from_checkpoint", "last"))
        assert stopped.value.code == FAILED and names in capsys.readouterr().err
    descriptions = [
        Mixture(read_mixture(path / "mixture.yaml"), SIZES, seed=0).description() for path in (folder, moved)
    ]
    assert descriptions[0] == descriptions[1]


def test_with_one_token_per_channel_windows_have_all_channels(folder, settings):
    """With sets of one, two and three channels, every step has one number of channels and every set is scored."""
    rng = np.random.default_rng(1)
    layout = CorpusLayout(multivariate=True)
    for channels in (2, 3):
        values = rng.normal(size=(8, channels, 80)).cumsum(2).astype(np.float32)
        series = [CorpusSeries(f"s{n}", np.datetime64("2020-01-01"), "h", one) for n, one in enumerate(values)]
        with new_corpus(folder / f"joint{channels}", layout) as partial:
            write_shards(partial, "data", series, layout)
    entries = [{"path": name} for name in ("joint2", "joint3", "made")]
    (folder / "joint.yaml").write_text(yaml.safe_dump(entries))
    joint = settings | {"corpus": str(folder / "joint.yaml"), "patch_length": 32, "patch_stride": 32}
    train(flags(joint, folder / "joint"))
    metrics = metrics_of(folder / "joint")
    assert set(metrics["test"]["per_set"]) == {"joint2", "joint3", "made"}
    assert np.isfinite(history(folder / "joint", *TERMS)).all()
    mixture = Mixture(read_mixture(folder / "joint.yaml"), SIZES, seed=2021, joint=True)
    assert len({mixture.batch(step, 8).past.shape[2] for step in range(STEPS)}) > 1


def test_fine_tuning_starts_from_the_trained_weights(single, folder, capsys):
    """The model's settings come with the weights; a learning rate of 0 leaves them unchanged."""
    series = write_series(folder / "series.csv", rows=200)
    common = ["--dataset", str(series), "--max_steps", "1", "--report_to", "none", "--precision", "fp32", "--use_cpu"]
    common += ["--init", str(single), "--learning_rate", "0", "--projection_learning_rate", "0"]
    train([*common, "--output_dir", str(folder / "tuned")])
    ours, theirs = (load_file(run / "model.safetensors") for run in (folder / "tuned", single))
    # the learned share is chosen again, and what belongs to the channels starts at zero
    share, own = "skip.learned_share", [ours.pop(f"skip.{name}") for name in LinearSkip.OF_CHANNELS]
    assert ours.keys() == theirs.keys() and not any(part.any() for part in own)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != share)
    for changed, message in (
        (["--context_length", "64"], "context_length 32, not 64"),
        (["--init", "absent/x"], "absent/x"),
    ):
        with pytest.raises(SystemExit) as stopped:
            train([*common, *changed, "--output_dir", str(folder / "refused")])
        assert stopped.value.code == FAILED and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"max_steps": -1}, "--max_steps"),
        ({"corpus": "absent.yaml"}, "cannot read the mixture absent.yaml"),
    ],
)
def test_settings_unfit_for_a_mixture_end_in_one_line(changed, message, folder, settings, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(flags(settings | changed, folder / "refused"))
    assert stopped.value.code == FAILED
    assert message in capsys.readouterr().err
    assert not (folder / "refused").exists()
