"""A pre-trained model forecasts unseen series: any step, any channels, any length, any horizon."""

import numpy as np
import pandas as pd
import pytest
from tiny import random_backbone, write_series

from llata_fast.__main__ import main
from llata_fast.data.panel import Panel
from llata_fast.data.synthetic import SyntheticSettings, synthesize
from llata_fast.errors import InputError
from llata_fast.experiment import train
from llata_fast.forecasting.forecaster import Forecaster

L, H = 32, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on synthetic series."""
    folder = tmp_path_factory.mktemp("any")
    synthesize(SyntheticSettings(20, 120), folder / "made")
    settings = {"context_length": L, "prediction_length": H, "patch_length": 8, "patch_stride": 8, "num_layers": 1}
    settings |= {"num_prototypes": 9, "intermediate_size": 20, "batch_size": 8, "max_steps": 2, "eval_steps": 2}
    settings |= {"save_steps": 2, "precision": "fp32", "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        outcome = train(
            corpus=str(folder / "made"), backbone=random_backbone(folder), output_dir=str(folder / "run"), **settings
        )
        yield str(outcome.folder)


def frame(lengths, freq, seed=0):
    rng = np.random.default_rng(seed)
    parts = [
        pd.DataFrame(
            {
                "shop": number,
                "when": pd.date_range("2020-01-31", periods=length, freq=freq),
                "sold": 100 * rng.normal(size=length).cumsum(),
            }
        )
        for number, length in enumerate(lengths)
    ]
    return pd.concat(parts, ignore_index=True)


COLUMNS = {"id_column": "shop", "timestamp_column": "when", "target": "sold"}


@pytest.mark.parametrize("freq", ["15min", "h", "D", "W-SUN", "MS", "QS-JAN", "YS-JAN", "B"])
def test_frames_of_any_step_and_length(run, freq):
    df = frame([100, L, 9, 2], freq)
    out = Forecaster.from_pretrained(run).predict_df(df, **COLUMNS)
    assert len(out) == 4 * H and np.isfinite(out["predictions"]).all()
    assert list(out.columns[:3]) == ["shop", "when", "target_name"] and "0.9" in out
    quantiles = out[[f"0.{level}" for level in range(1, 10)]].to_numpy()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    last = df[df["shop"] == 0]["when"]
    expected = pd.date_range(last.iloc[0], periods=100 + H, freq=freq)[100:]
    assert (pd.DatetimeIndex(out[out["shop"] == 0]["when"]) == expected).all()


@pytest.mark.filterwarnings("ignore:prediction_length")
@pytest.mark.parametrize("horizon", [1, H, 3 * H + 1])
def test_any_horizon(run, horizon):
    out = Forecaster.from_pretrained(run).predict_df(frame([50], "D"), prediction_length=horizon, **COLUMNS)
    assert len(out) == horizon and np.isfinite(out["predictions"]).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_arrays_of_any_number_of_channels(run, channels):
    arrays = [np.random.default_rng(0).normal(size=(40, channels)) for _ in range(3)]
    forecaster = Forecaster.from_pretrained(run)
    points, quantiles = forecaster.predict(arrays)
    assert [part.shape for part in points] == [(H, channels)] * 3
    assert [part.shape for part in quantiles] == [(H, channels, 9)] * 3
    # every channel is forecast as a separate series
    alone, _ = forecaster.predict([arrays[0][:, -1]])
    np.testing.assert_allclose(points[0][:, -1:], alone[0], atol=1e-5)
    with pytest.raises(InputError, match="array 1 must be"):
        forecaster.predict([arrays[0], np.zeros((40, channels + 1))])


@pytest.mark.parametrize("rows", [200, L, 5])
@pytest.mark.parametrize("every", [None, 3])
def test_any_csv(run, rows, every, tmp_path):
    source = write_series(tmp_path / "any.csv", rows=rows, channels=4)
    more = [] if every is None else ["--every", str(every)]
    main(["predict", run, "--input", str(source), "--output", str(tmp_path / "out.csv"), *more])
    out = pd.read_csv(tmp_path / "out.csv")
    assert len(out) == H * (1 if every is None else -(-rows // every))
    assert {"c0", "c1", "c2", "c3"} <= set(out.columns)
    values = out[["c0", "c1", "c2", "c3"]].to_numpy()
    assert np.isfinite(values).all()
    # near the channels' levels, 100 to 400
    np.testing.assert_allclose(values.mean(0), [100, 200, 300, 400], atol=60)


def test_an_unseen_set_is_scored(run, tmp_path, capsys):
    source = write_series(tmp_path / "any.csv", rows=400, channels=2)
    main(["evaluate", run, "--dataset", str(source)])
    assert "seasonal_naive" in capsys.readouterr().out


def test_fine_tuning_on_a_panel_starts_from_it(run, tmp_path):
    panel = Panel.from_df(frame([90, 80], "D"), **COLUMNS)
    how = {"output_dir": tmp_path / "tuned", "max_steps": 1, "precision": "fp32", "use_cpu": True, "report_to": "none"}
    still = {"learning_rate": 0.0, "projection_learning_rate": 0.0}
    tuned = Forecaster.fit(panel, prediction_length=H, context_length=L, init=run, **how, **still)
    arrays = [np.random.default_rng(0).normal(size=40)]
    before, after = (forecaster.predict(arrays)[0][0] for forecaster in (Forecaster.from_pretrained(run), tuned))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert tuned.model.config.quantile_levels
