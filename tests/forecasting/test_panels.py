"""The README's three lines and everything else the API and the commands promise for panels, on EIA's weekly data."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY_SETTINGS, perturb, random_backbone, tiny_config, write_series

from llata_fast import Forecaster, LlataForPrediction, Panel, read_csv
from llata_fast.__main__ import main
from llata_fast.data import read_wide_csv
from llata_fast.data.panel import read_panel
from llata_fast.data.windows import Windows
from llata_fast.errors import InputError, InputWarning
from llata_fast.forecasting.calibration import CALIBRATED_LEVELS, Calibration
from llata_fast.preprocessor import Preprocessor
from llata_fast.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("plain_ops_throughout")

H, L = 8, 24
COLUMNS = {"id_column": "item_id", "timestamp_column": "timestamp", "target": "target"}
QUANTILES = ["0.1", "0.5", "0.9"]
OUTPUT = ["item_id", "timestamp", "target_name", "predictions", *QUANTILES]
SMALL = TINY_SETTINGS | {
    "ablation": "no_llm",
    "linear_skip": True,
    "batch_size": 32,
    "max_steps": 4,
    "eval_strategy": "no",
    "save_strategy": "no",
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def df():
    pytest.importorskip("autots")
    frame = read_panel("EIA").to_df()
    return frame.set_axis(["item_id", "timestamp", "target"], axis=1).groupby("item_id", sort=False).tail(160)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, df):
    path = tmp_path_factory.mktemp("panels")
    panel = Panel.from_df(df, **COLUMNS, freq=None, missing="mask")
    backbone = random_backbone(path)
    Forecaster.fit(
        panel,
        prediction_length=H,
        context_length=L,
        quantile_levels=[0.1, 0.5, 0.9],
        output_dir=path / "run",
        backbone=backbone,
        **SMALL,
    )
    df.to_parquet(path / "sales.parquet")
    df.to_csv(path / "sales.csv", index=False)
    return path


@pytest.fixture(scope="module")
def f(folder):
    return Forecaster.from_pretrained(folder / "run", device=None)


def test_predict_df(f, df):
    before = df.copy()
    out = f.predict_df(df, **COLUMNS, prediction_length=None, quantile_levels=None, batch_size=None)
    pd.testing.assert_frame_equal(df, before)
    assert list(out.columns) == OUTPUT and len(out) == 9 * H
    assert list(out["item_id"].unique()) == list(df["item_id"].unique())
    for name in ("item_id", "timestamp"):
        assert out[name].dtype == df[name].dtype
    assert all(out[name].dtype == np.float64 for name in OUTPUT[3:])
    last = df.groupby("item_id", sort=False)["timestamp"].max()
    first = out.groupby("item_id", sort=False)["timestamp"].min()
    assert (pd.to_datetime(first) - pd.to_datetime(last) == pd.Timedelta(days=7)).all()
    assert (np.diff(out[QUANTILES].to_numpy(), axis=1) >= 0).all()
    # the run knows its columns, and accepts a panel
    for again in (f.predict_df(df), f.predict_df(Panel.from_df(df, **COLUMNS))):
        pd.testing.assert_frame_equal(again, out)


def test_an_item_has_the_same_forecast_alone_and_among_others(f, df):
    out = f.predict_df(df)
    shuffled = df.sample(frac=1, random_state=0)
    for frame, batch_size in ((df, 1), (shuffled, 4)):
        again = f.predict_df(frame, batch_size=batch_size)
        merged = out.merge(again, on=OUTPUT[:3], suffixes=("", " again"))
        assert len(merged) == len(out)
        for name in OUTPUT[3:]:
            np.testing.assert_allclose(merged[name], merged[f"{name} again"], rtol=1e-5)
    name = df["item_id"].iloc[200]
    alone = f.predict_df(df[df["item_id"] == name])
    np.testing.assert_allclose(alone["0.1"], out.loc[out["item_id"] == name, "0.1"], rtol=1e-5)


@pytest.mark.parametrize("k, c", [(1e-9, 0.0), (1e9, -3.0), (1.0, 1e9)])
def test_forecasts_do_not_depend_on_unit_or_level(f, df, k, c):
    spread = df.groupby("item_id", sort=False)["target"].transform("std")
    moved = f.predict_df(df.assign(target=k * df["target"] + c * k * spread))
    plain = f.predict_df(df)
    spread = spread.groupby(df["item_id"], sort=False).first().repeat(H).to_numpy()
    for name in OUTPUT[3:]:
        np.testing.assert_allclose(moved[name] / k, plain[name] + c * spread, rtol=0, atol=1e-5 * spread.max())


def test_predict(f, df):
    arrays = [values["target"].to_numpy() for _, values in df.groupby("item_id", sort=False)]
    points, quantiles = f.predict([*arrays, torch.from_numpy(arrays[0][-10:])])
    assert [values.shape for values in points] == [(H, 1)] * 10
    assert [values.shape for values in quantiles] == [(H, 1, 3)] * 10
    out = f.predict_df(df)
    np.testing.assert_allclose(np.concatenate(points[:9])[:, 0], out["predictions"], rtol=1e-5)
    assert f.predict(arrays, quantile_levels=[])[1] is None
    with pytest.raises(InputError, match=r"predict_df\(read_csv\(path\)\)"):
        f.predict(df)


def test_cross_validation(f, df):
    cv = f.cross_validation(df, n_windows=3, step_size=None, refit=False, **COLUMNS)
    assert list(cv.columns) == ["item_id", "timestamp", "cutoff", "target_name", "target", "predictions", *QUANTILES]
    assert len(cv) == 3 * 9 * H and cv["cutoff"].nunique() == 3
    truth = cv.merge(df, on=["item_id", "timestamp"], suffixes=("", " of the frame"))
    np.testing.assert_array_equal(truth["target"], truth["target of the frame"])
    # nothing after the cutoff is used
    name, cutoff = cv["item_id"].iloc[0], cv["cutoff"].unique()[1]
    known = df[(df["item_id"] == name) & (df["timestamp"] <= cutoff)]
    window = cv[(cv["item_id"] == name) & (cv["cutoff"] == cutoff)]
    np.testing.assert_allclose(f.predict_df(known)["0.9"], window["0.9"], rtol=1e-5)


def test_cross_validation_refits_only_on_the_past(f, df):
    cut = sorted(df["timestamp"].unique())[-H]
    changed = df.assign(target=df["target"].where(df["timestamp"] < cut, 1e6))
    one, other = (f.cross_validation(frame, n_windows=1, refit=True, **COLUMNS) for frame in (df, changed))
    np.testing.assert_allclose(one["predictions"], other["predictions"], rtol=1e-5)
    assert not np.allclose(one["predictions"], f.cross_validation(df, n_windows=1)["predictions"], rtol=1e-4)


def test_evaluate(f, df):
    pytest.importorskip("utilsforecast")
    scores = f.evaluate(df, metrics=("MASE", "WQL"), n_windows=1, **COLUMNS)
    assert list(scores.columns) == ["MASE", "WQL"] and "llata" in scores.index and "seasonal_naive" in scores.index
    assert np.isfinite(scores.to_numpy()).all()
    cv = f.cross_validation(df, n_windows=1, quantile_levels=[level / 10 for level in range(1, 10)])
    losses = [
        2 * np.maximum(level / 10 * error, (level / 10 - 1) * error)
        for level in range(1, 10)
        for error in [cv["target"] - cv[f"{level / 10:g}"]]
    ]
    expected = np.mean([loss.sum() for loss in losses]) / cv["target"].abs().sum()
    assert scores.loc["llata", "WQL"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="unknown metric 'R2'"):
        f.evaluate(df, metrics=["R2"])


def test_calibrate_and_save_pretrained(folder, df, tmp_path):
    f = Forecaster.from_pretrained(folder / "run")
    before = f.predict_df(df)
    f.calibrate(df, n_windows=10, **COLUMNS)
    after = f.predict_df(df)
    assert not np.allclose(before["0.1"], after["0.1"])
    np.testing.assert_array_equal(before["predictions"], after["predictions"])
    f.save_pretrained(tmp_path / "saved")
    pd.testing.assert_frame_equal(Forecaster.from_pretrained(tmp_path / "saved").predict_df(df), after, rtol=1e-6)


def test_horizons(f, df):
    out = f.predict_df(df)
    short = f.predict_df(df, prediction_length=3)
    steps = np.tile(np.arange(H), 9)
    np.testing.assert_allclose(short[OUTPUT[3:]], out.loc[steps < 3, OUTPUT[3:]], rtol=1e-6)
    with pytest.warns(InputWarning, match="prediction_length 20 is longer than the run's 8"):
        long = f.predict_df(df, prediction_length=20)
    steps = np.tile(np.arange(20), 9)
    np.testing.assert_allclose(long.loc[steps < H, OUTPUT[3:]], out[OUTPUT[3:]], rtol=1e-6)
    assert np.isfinite(long[OUTPUT[3:]].to_numpy()).all() and (np.diff(long[QUANTILES], axis=1) >= 0).all()
    width = (long["0.9"] - long["0.1"]) / (out["0.9"] - out["0.1"]).groupby(out["item_id"], sort=False).mean().repeat(
        20
    ).to_numpy()
    assert width[steps >= 16].mean() > width[steps < H].mean(), "farther ahead less is known"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction_length": 0}, "prediction_length must be at least 1, got 0"),
        ({"quantile_levels": [0.1, 1.5]}, "quantile_levels must lie between 0 and 1, got 1.5"),
        ({"quantile_levels": [0.9, 0.1]}, "quantile_levels must increase"),
    ],
)
def test_invalid_arguments_are_refused(f, df, change, words):
    with pytest.raises(InputError, match=words):
        f.predict_df(df, **change)


def test_another_frequency_than_the_runs_is_refused(f, df):
    days = df.assign(
        timestamp=df.groupby("item_id").cumcount().map(lambda day: pd.Timestamp("2024-01-01") + pd.Timedelta(days=day))
    )
    with pytest.raises(InputError, match="item 'Weekly Minnesota.*the step is D, but the run was trained on W-FRI"):
        f.predict_df(days)


def test_an_item_without_values_stays_empty(f, df):
    name = df["item_id"].iloc[0]
    with pytest.warns(InputWarning, match="no forecast for 1 item, because.*Minnesota"):
        out = f.predict_df(df.assign(target=df["target"].where(df["item_id"] != name)))
    empty = out["item_id"] == name
    assert out.loc[empty, OUTPUT[3:]].isna().all(axis=None) and out.loc[~empty, OUTPUT[3:]].notna().all(axis=None)


def test_commands(folder, df, capsys):
    """The README's block of commands, line by line."""
    small = [f"--{name}={value}" for name, value in SMALL.items()]
    backbone = next(folder.glob("*.json"))
    line = f"fit {folder}/sales.parquet --id_column item_id --target target --prediction_length 8"
    line += f" --quantile_levels .1 .5 .9 --context_length 24 --backbone random:{backbone} --output_dir {folder}/x"
    main([*line.split(), *small])
    line = f"predict {folder}/x --input {folder}/sales.parquet --quantile_levels .1 .5 .9 --output {folder}/f.parquet"
    main(line.split())
    out = pd.read_parquet(folder / "f.parquet")
    assert list(out.columns) == OUTPUT
    pd.testing.assert_frame_equal(out, Forecaster.from_pretrained(folder / "x").predict_df(df), check_dtype=False)
    main(f"backtest {folder}/x --input {folder}/sales.csv --n_windows 3 --output {folder}/scores.csv".split())
    scores = pd.read_csv(folder / "scores.csv", index_col="model")
    assert scores.loc[["llata", "seasonal_naive"], ["MASE", "WQL", "sMAPE", "coverage"]].notna().all(axis=None)
    assert len(scores.columns) == 4
    with pytest.raises(SystemExit):
        main(["evaluate", f"{folder}/x"])
    assert "llata-fast backtest" in capsys.readouterr().err


LOADED = """
import sys
from llata_fast.__main__ import main
main(sys.argv[1:])
print([name for name in ("deepspeed", "transformers.trainer", "llata_fast.experiment") if name in sys.modules])
"""


def test_a_forecast_does_not_import_the_trainer(folder, launch):
    line = f"predict {folder}/run --input {folder}/sales.csv --quantile_levels .5 --output {folder}/g.csv"
    assert launch("python", "-c", "import llata_fast\n" + LOADED, *line.split()).splitlines()[-1] == "[]"


def test_train_py_takes_a_panel(folder, launch, free_port):
    """One rank, and two ranks under DeepSpeed's launcher, train the same."""
    small = [f"--{name}={value}" for name, value in (SMALL | {"dropout": 0.0, "learning_rate": 1e-2}).items()]
    backbone = next(folder.glob("*.json"))
    line = f"--dataset {folder}/sales.parquet --id_column item_id --target target --prediction_length 8"
    line += f" --context_length 24 --backbone random:{backbone}"
    launchers = {
        "one": ["python", "train.py"],
        "two": ["deepspeed", "--num_gpus", 2, "--master_port", free_port, "train.py"],
    }
    runs = {}
    for name, command in launchers.items():
        strategy = ["--deepspeed", "ds_configs/zero2.json"] if name == "two" else []
        output = launch(*command, *strategy, *line.split(), "--output_dir", folder / name, *small)
        assert output.count("seasonal_naive") == 1
        runs[name] = RunFolder(folder / name).read_metrics()
    one, two = runs["one"], runs["two"]
    assert 0 < one["intervals"]["coverage_80"] < 1 and one["baselines"]["linear"]["mse"] > 0
    assert one["learned"]["share"] > 0, "else nothing of the training is compared"
    for name in ("test", "intervals"):
        flat = [pd.json_normalize(run[name]).iloc[0].astype(float) for run in (one, two)]
        pd.testing.assert_series_equal(*flat, rtol=1e-4)
    assert two["training"]["steps"] == one["training"]["steps"] == SMALL["max_steps"]


def test_two_ranks_write_what_one_does(folder, launch, free_port):
    for ranks, name in ((1, "one"), (2, "two")):
        line = (
            f"-m llata_fast predict {folder}/run --input {folder}/sales.csv --batch_size 2 --output {folder}/{name}.csv"
        )
        launch("torchrun", f"--nproc_per_node={ranks}", f"--master_port={free_port}", *line.split())
    assert (folder / "one.csv").read_text() == (folder / "two.csv").read_text()


def test_a_wide_file_is_a_panel_of_one_item(tmp_path):
    """A run on a wide series without a quantile head has quantiles once it is calibrated."""
    path = write_series(tmp_path / "series.csv", 200)
    model = LlataForPrediction.from_backbone(
        tiny_config(random_backbone(tmp_path), context_length=L, prediction_length=H)
    )
    perturb(model)
    series = read_wide_csv(path)
    info = Preprocessor("series", list(series.columns), "date", "h", 24, [0.0] * 3, [1.0] * 3)
    f = Forecaster(model, info)
    out = f.predict_df(read_csv(path))
    assert list(out.columns) == ["item_id", "date", "target_name", "predictions"]
    assert list(out["target_name"]) == ["c0"] * H + ["c1"] * H + ["c2"] * H
    np.testing.assert_allclose(
        out["predictions"].to_numpy().reshape(3, H).T, f.wide.predict(series).iloc[:, 1:], rtol=1e-6
    )
    with pytest.raises(InputError, match="neither a quantile head nor a calibration"):
        f.predict_df(read_csv(path), quantile_levels=[0.5])
    f.calibrate(read_csv(path), n_windows=10)
    out = f.predict_df(read_csv(path), quantile_levels=[0.05, 0.5, 0.95])
    assert (np.diff(out[["0.05", "0.5", "0.95"]], axis=1) >= 0).all()


@pytest.mark.parametrize("levels", [None, [0.2, 0.7]], ids=["points", "head"])
def test_calibrated_intervals_cover_what_they_should(tmp_path, levels):
    """For any forecast, on exchangeable windows, each quantile covers its level of the truth."""
    config = tiny_config(random_backbone(tmp_path), context_length=L, prediction_length=3, quantile_levels=levels)
    model = LlataForPrediction.from_backbone(config)
    perturb(model)
    draws = np.random.default_rng(0)
    frame = lambda size: pd.DataFrame(
        {
            "item_id": np.repeat(np.arange(size), L + 3),
            "timestamp": np.tile(np.arange(L + 3), size),
            "target": draws.gamma(1.0, size=size * (L + 3)),
        }
    )
    f = Forecaster(model, Preprocessor("x", ["target"], "timestamp", "1", 1, [0.0], [1.0], id_column="item_id"))
    f.calibrate(frame(600), n_windows=1)
    wanted = [0.1, 0.25, 0.5, 0.8, 0.975]
    cv = f.cross_validation(frame(600), n_windows=1, quantile_levels=wanted)
    for level in wanted:
        assert (cv["target"] <= cv[f"{level:g}"]).mean() == pytest.approx(level, abs=0.035)


def test_calibration_takes_the_order_statistic():
    draws = np.random.default_rng(0)
    past, errors = draws.normal(size=(19, L, 1)), draws.normal(size=(19, 1, 1))

    class NineteenWindows(Windows):
        def __len__(self):
            return 19

        def stretches(self, indices):
            deviation, level = past[indices].std(1, keepdims=True), past[indices].mean(1, keepdims=True)
            return torch.from_numpy(past[indices]), torch.from_numpy(level + deviation * errors[indices])

    calibration = Calibration.of(
        lambda inputs: (torch.zeros(len(inputs["past_values"]), 1, 1),), NineteenWindows(), None
    )
    offsets = dict(zip(CALIBRATED_LEVELS, calibration.offsets[0, 0].tolist(), strict=True))
    ranked = np.sort(errors.ravel())
    # the k-th of 19 errors is above a new one with probability k / 20
    for level, rank in ((0.05, 1), (0.1, 2), (0.5, 10), (0.9, 18), (0.95, 19), (0.99, 19), (0.01, 1)):
        assert offsets[level] == pytest.approx(ranked[rank - 1], rel=1e-5)
