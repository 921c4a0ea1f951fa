"""`python -m llata_fast benchmark`: every protocol end to end on synthetic data; resuming, refusals and notes."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import random_backbone, write_series

from llata_fast import __main__ as program
from llata_fast.data import find_dataset
from llata_fast.training import presets

pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Hourly ETT series of the right length but little training, and M4's yearly files."""
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("ETTh1", 0), ("ETTh2", 1)):
        path = write_series(folder / f"{name}.csv", rows=14400, channels=7, seed=seed)
        table = pd.read_csv(path)
        table.columns = ["date", *find_dataset(name).columns]
        table.to_csv(path, index=False)
    rng = np.random.default_rng(0)
    for part, width in (("train", 20), ("test", 6)):
        rows = [[f"Y{number}", *rng.uniform(50, 60, width).round(1)] for number in range(6)]
        columns = [f"V{number}" for number in range(width + 1)]
        pd.DataFrame(rows, columns=columns).to_csv(folder / f"Yearly-{part}.csv", index=False)
    return folder


@pytest.fixture
def bench(data_dir, tmp_path, monkeypatch):
    """`bench(*argv)` runs the benchmark on a tiny backbone for one step and returns the table of all results."""
    small = {
        "backbone": random_backbone(tmp_path),
        "num_layers": 1,
        "num_prototypes": 5,
        "intermediate_size": 8,
        # the paper's tables use 96, whatever the preset
        "context_length": 48,
        "batch_size": 4,
        "max_steps": 1,
        "eval_steps": 1,
        "save_steps": 1,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_only_model": True,
        "average_decay": 0.5,
    }
    monkeypatch.setattr(presets, "TUNED", small)
    losses = {"task_loss": "smape", "consistency_loss": "mase"}
    monkeypatch.setattr(presets, "_TUNED_M4", losses)

    def run(*argv):
        places = ("--data_dir", data_dir, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
        program.main([str(part) for part in ("benchmark", *argv, *places)])
        return pd.read_csv(tmp_path / "out" / "results.csv")

    run.folder = tmp_path
    return run


def refused(bench, capsys, *argv):
    with pytest.raises(SystemExit) as exit:
        bench(*argv)
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_long_term_and_zero_shot(bench):
    few = ("--datasets", "ETTh1", "--horizons", "96", "--seeds", "1")
    table = bench("long_term", *few, "--models", "llata", "no_llm", "linear", "dlinear", "seasonal_naive")
    # every window of 120 days
    assert table["windows"].tolist() == [24 * 120 - 96 + 1] * 5
    assert table["mse"].notna().all() and table["mae"].notna().all()
    assert table["command"][0].startswith("python train.py --dataset ETTh1 --recipe tuned --prediction_length 96")
    assert table["trained_parameters"][0] > table["trained_parameters"][1] > 0
    assert {"results.csv", "RESULTS.md"} <= {path.name for path in (bench.folder / "out").iterdir()}

    weights = bench.folder / "runs" / "ETTh1-96-llata-tuned-1" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    table = bench("zero_shot", *few, "--models", "llata", "--targets", "ETTh2")
    assert len(table) == 6 and table["target"].iloc[-1] == "ETTh2"
    assert weights.stat().st_mtime_ns == before, "the long-term run is read, not trained again"
    again = bench("long_term", *few, "--models", "llata")
    assert len(again) == 6, "a row that is there is not done again"


def test_a_run_without_the_linear_skip(bench, monkeypatch):
    """The row's command turns the skip off."""
    monkeypatch.setattr(presets, "TUNED", presets.TUNED | {"linear_skip": True})
    few = ("--datasets", "ETTh1", "--horizons", "96", "--seeds", "1")
    table = bench("long_term", *few, "--models", "llata", "no_skip", "linear_per_channel").set_index("model")
    assert table["command"]["no_skip"].count("--linear_skip false") == 1
    trained = table["trained_parameters"]
    assert trained["llata"] == trained["no_skip"], "the run chooses its skip, nothing there is trained"
    assert table["mse"].notna().all()
    written = json.loads((bench.folder / "runs" / "ETTh1-96-llata-tuned-1" / "metrics.json").read_text())
    assert sum(written["linear_start"]["mixture"].values()) == pytest.approx(1)
    assert 0 <= written["learned"]["share"] <= 1


def test_with_a_share_of_zero_a_run_is_its_linear_start(bench, monkeypatch):
    monkeypatch.setattr(presets, "TUNED", presets.TUNED | {"linear_skip": True})
    monkeypatch.setattr("llata_fast.training.learned_share._best_share", lambda blocks: 0.0)
    few = ("--datasets", "ETTh1", "--horizons", "96", "--seeds", "1")
    table = bench("long_term", *few, "--models", "llata", "linear_start").set_index("model")
    for error in ("mse", "mae"):
        assert table[error]["llata"] == pytest.approx(table[error]["linear_start"], rel=1e-4)
    assert math.isnan(table["seed"]["linear_start"])


def test_reference_protocol_drops_the_last_batch_and_says_so(bench):
    table = bench("long_term", "--datasets", "ETTh1", "--horizons", "96", "--models", "linear", "--reference_protocol")
    # 2785 windows in batches of 256
    assert table["windows"].item() == 2560
    assert table["note"].item() == "last test batch dropped, as the reference did: 225 windows left out"
    assert table["command"].item().endswith("--reference_protocol")


def test_few_shot_notes_horizons_that_cannot_be_trained(bench):
    table = bench(
        "few_shot", "--datasets", "ETTh1", "--percents", "5", "--horizons", "192", "720", "--seeds", "1",
        "--models", "llata", "dlinear",
    )  # fmt: skip
    short, long = table[table["horizon"] == 192], table[table["horizon"] == 720]
    assert short["mse"].notna().all() and long["mse"].isna().all()
    assert long["note"].str.contains("too few for context 96 + horizon 720", regex=False).all()
    assert short["command"].iloc[0].endswith("--few_shot_percent 5")


def test_short_term(bench):
    table = bench("short_term", "--datasets", "Yearly", "--seeds", "1")
    scores = table.set_index("model")
    assert list(scores.index) == ["llata", "naive2", "seasonal_naive", "linear", "dlinear"]
    assert scores.loc["naive2", "owa"] == 1
    assert scores[["smape", "mase", "owa"]].notna().all(axis=None)
    # with m = 1 the seasonal naive forecast equals Naive2's
    assert scores.loc["seasonal_naive", "owa"] == pytest.approx(1)


def test_refusals(bench, capsys):
    assert "zero_shot needs --targets" in refused(bench, capsys, "zero_shot", "--datasets", "ETTh1")
    assert "unknown dataset 'ETTh9'" in refused(bench, capsys, "zero_shot", "--datasets", "ETTh1", "--targets", "ETTh9")
    assert "--targets is for zero_shot" in refused(bench, capsys, "long_term", "--targets", "ETTh1")
    assert "--horizons must be at least 1" in refused(bench, capsys, "long_term", "--horizons", "0")
    assert "--percents must be above 0" in refused(bench, capsys, "few_shot", "--percents", "5", "200")
    (bench.folder / "out").touch()
    assert "out is a file" in refused(bench, capsys, "long_term", "--datasets", "ETTh1", "--models", "linear")
    (bench.folder / "out").unlink()
    assert "unknown dataset 'ETTh9'" in refused(bench, capsys, "long_term", "--datasets", "ETTh9")
    assert "no frequency 'ETTh1'" in refused(bench, capsys, "short_term", "--datasets", "ETTh1")
    line = refused(bench, capsys, "long_term", "--datasets", "ETTh1", "--models", "naive2")
    assert "naive2 is no baseline of long_term" in line
    assert not Path(bench.folder, "out").exists()
