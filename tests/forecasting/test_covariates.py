"""Covariates from tables to forecasts: known values are used, unknowable ones are not, missing ones are named."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tiny import TINY_SETTINGS, random_backbone

from llata_fast import Forecaster, Panel
from llata_fast.__main__ import main
from llata_fast.errors import InputError, InputWarning
from llata_fast.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("plain_ops_throughout")

H, L, ROWS = 6, 24, 160
ROLES = {"known_covariates": ["x", "promo"], "past_covariates": ["visits"], "static_covariates": ["store"]}
SMALL = TINY_SETTINGS | {
    "batch_size": 32,
    "max_steps": 4,
    "eval_strategy": "no",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
LENGTHS = {"prediction_length": H, "context_length": L}


def driven(seed=0, items=3, rows=ROWS + 2 * H):
    """Noise plus the effects of a number and a category; visits and store have no effect."""
    draws, parts = np.random.default_rng(seed), []
    for item in range(items):
        x, promo = draws.normal(size=rows).round(3), draws.random(rows) < 0.3
        columns = {
            "item_id": f"i{item}",
            "timestamp": pd.date_range("2024-01-01", periods=rows),
            "target": 50 * item + 3 * x + 4 * promo + 0.3 * draws.normal(size=rows),
            "x": x,
            "promo": promo,
            "visits": draws.normal(size=rows),
            "store": f"s{item}",
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def past(table, ahead=2 * H):
    return table.groupby("item_id", sort=False).head(ROWS + 2 * H - ahead)


def future(table, ahead=2 * H, steps=H):
    rows = table[table.groupby("item_id", sort=False).cumcount() >= ROWS + 2 * H - ahead]
    return rows.groupby("item_id", sort=False).head(steps)[["item_id", "timestamp", "x", "promo"]]


@pytest.fixture(scope="module")
def df():
    return driven()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("covariates")


def fitted(folder, table, name, roles, **settings):
    panel = Panel.from_df(past(table), **roles)
    more = SMALL | {"backbone": random_backbone(folder), "quantile_levels": [0.1, 0.5, 0.9]} | settings
    return Forecaster.fit(panel, **LENGTHS, output_dir=folder / name, **more)


@pytest.fixture(scope="module")
def f(folder, df):
    fitted(folder, df, "run", ROLES | {"calendar": "weekday"})
    return Forecaster.from_pretrained(folder / "run")


def score(forecaster, table, roles):
    return forecaster.evaluate(Panel.from_df(table, **roles), metrics=("MASE",), n_windows=2, baselines=())[
        "MASE"
    ].item()


def test_a_covariate_helps_until_it_is_shuffled(f, df, folder):
    without = score(fitted(folder, df, "without", {}), df, {})
    shuffled = df.copy()
    order = np.random.default_rng(5).permutation(len(df))
    shuffled[["x", "promo"]] = df[["x", "promo"]].to_numpy()[order]
    shuffled = shuffled.astype({"x": float, "promo": bool})
    of_shuffled = score(fitted(folder, shuffled, "shuffled", ROLES), shuffled, ROLES)
    assert score(f, df, ROLES | {"calendar": "weekday"}) < 0.3 * without
    assert of_shuffled == pytest.approx(without, rel=0.1)
    # a run that has learned the effect gets worse
    assert score(f, shuffled, ROLES | {"calendar": "weekday"}) > without


def test_predict_df_takes_the_future(f, df):
    before, known = past(df), future(df)
    copies = before.copy(), known.copy()
    out = f.predict_df(before, future_df=known)
    pd.testing.assert_frame_equal(before, copies[0])
    pd.testing.assert_frame_equal(known, copies[1])
    assert list(out) == ["item_id", "timestamp", "target_name", "predictions", "0.1", "0.5", "0.9"]
    truth = out.merge(df, on=["item_id", "timestamp"], validate="one_to_one")
    assert len(truth) == 3 * H
    assert (truth["predictions"] - truth["target"]).abs().mean() < 1.0
    # for any order of rows, kind of table and number of items
    panel = Panel.from_df(before, **ROLES, calendar="weekday")
    others = [
        f.predict_df(panel, future_df=known),
        f.predict_df(before.sample(frac=1, random_state=0), future_df=known[::-1], batch_size=1),
        f.predict_df(Panel.from_df(df, **ROLES, calendar="weekday").until(2 * H)),
    ]
    for again in others:
        merged = out.merge(again, on=list(out)[:3], suffixes=("", " again"))
        np.testing.assert_allclose(merged["predictions"], merged["predictions again"], rtol=1e-5)
    # an item's covariates affect only that item
    known.loc[known["item_id"] == "i1", "x"] += 1
    moved = f.predict_df(before, future_df=known)["predictions"] - out["predictions"]
    assert (moved[out["item_id"] != "i1"] == 0).all()
    # the effect is 3 on average; it is learned and applied in units of the lookback's deviation
    assert moved[out["item_id"] == "i1"].mean() == pytest.approx(3, abs=1)


def test_no_window_sees_what_comes_after_its_cutoff(f, df):
    cut = df["timestamp"].unique()[-H]
    spoiled = df.copy()
    spoiled.loc[spoiled["timestamp"] >= cut, "visits"] = 1e3
    spoiled.loc[spoiled["timestamp"] >= cut, "target"] = -1e3
    tables = [f.cross_validation(table, n_windows=1).drop(columns="target") for table in (df, spoiled)]
    pd.testing.assert_frame_equal(*tables)
    # nor does a horizon longer than the trained one
    panels = [Panel.from_df(table, **ROLES, calendar="weekday").until(2 * H) for table in (df, spoiled)]
    with pytest.warns(InputWarning, match="later forecasts build on earlier ones"):
        pd.testing.assert_frame_equal(*(f.predict_df(panel, prediction_length=2 * H) for panel in panels))
    known = df.assign(x=np.where(df["timestamp"] >= cut, 0.0, df["x"]))
    assert not f.cross_validation(known, n_windows=1)["predictions"].equals(tables[0]["predictions"])


def test_a_longer_horizon_takes_a_longer_future(f, df):
    with pytest.warns(InputWarning, match="later forecasts build on earlier ones"):
        out = f.predict_df(past(df), future_df=future(df, steps=2 * H), prediction_length=2 * H)
    truth = out.merge(df, on=["item_id", "timestamp"])
    assert len(truth) == 6 * H and (truth["predictions"] - truth["target"]).abs().mean() < 1.0
    with pytest.warns(InputWarning), pytest.raises(InputError, match="item 'i0' ends early, at 2024-06-1"):
        f.predict_df(past(df), future_df=future(df), prediction_length=2 * H)


def test_the_folder_contains_all_that_a_forecast_needs(f, df, folder):
    f.save_pretrained(folder / "saved")
    again = Forecaster.from_pretrained(folder / "saved").predict_df(past(df), future_df=future(df))
    pd.testing.assert_frame_equal(again, f.predict_df(past(df), future_df=future(df)))
    settings = yaml.safe_load((folder / "run" / "run.yaml").read_text())
    assert {name: settings[name] for name in ROLES} == ROLES and settings["calendar"] == ["weekday"]


def test_methods_take_the_runs_own_roles(f, df):
    scores = f.evaluate(df, n_windows=2)
    assert list(scores.index) == ["llata", "seasonal_naive", "linear", "exponential_smoothing", "ridge_covariates"]
    assert scores.loc["ridge_covariates", "MASE"] < 0.5 * scores.loc["linear", "MASE"]
    calibrated = Forecaster(f.model, f.info).calibrate(df, n_windows=4)
    assert calibrated.calibration.num_windows == 12
    assert np.nanmax(np.abs(calibrated.calibration.offsets.numpy())) > 0
    again = f.cross_validation(df, n_windows=1, refit=True)
    assert (again["predictions"] - again["target"]).abs().mean() < 1.0


def test_missing_covariates_are_named_in_one_line(f, df, folder):
    plain = fitted(folder, df, "plain", {}, max_steps=1)
    before, known = past(df), future(df)
    cases = [
        (f, before, None, "the known covariates x, promo end with the targets: give their next 6 steps as future_df"),
        (f, before.drop(columns="x"), known, "no column 'x' (known_covariates) among"),
        (f, before.drop(columns="visits"), known, "no column 'visits' (past_covariates) among"),
        (f, before, known.drop(columns="promo"), "future_df: no column 'promo' (known_covariates) among"),
        (f, before, known[known["item_id"] != "i2"], "future_df lacks rows of item 'i2'"),
        (f, Panel.from_df(before), known, "trained with 'x' as one of its known_covariates, but it is missing here"),
        (f, before.assign(promo=1), known, "'promo': the run was trained with categories, but here are numbers"),
        (plain, before, known, "future_df: this run was trained without known covariates and cannot use it"),
    ]
    for forecaster, table, ahead, message in cases:
        with pytest.raises(InputError) as error:
            forecaster.predict_df(table, future_df=ahead)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="ridge_covariates needs covariates that vary over time, and panel has"):
        plain.evaluate(df, baselines=["ridge_covariates"])
    with pytest.raises(InputError, match="trained with covariates, which arrays lack: use predict_df with tables"):
        f.predict([np.arange(30.0)])
    with pytest.raises(InputError, match="trained with covariates: past_covariates must be"):
        f(torch.zeros(1, L, 1))


def test_commands(df, folder, capsys):
    past(df).to_csv(folder / "sales.csv", index=False)
    df.to_csv(folder / "all.csv", index=False)
    future(df).to_parquet(folder / "next.parquet")
    sizes = [
        word
        for name, value in (SMALL | LENGTHS).items()
        if name != "disable_tqdm"
        for word in (f"--{name}", str(value))
    ]
    run, backbone = folder / "by command", random_backbone(folder)
    roles = [word for name, columns in ROLES.items() for word in (f"--{name}", *columns)]
    fit = ["fit", folder / "sales.csv", "--output_dir", run, "--backbone", backbone, *sizes, *roles, "--calendar"]
    main([str(word) for word in [*fit, "--held_out_ids", "i2"]])
    said = capsys.readouterr().out
    assert "ridge_covariates" in said and "--future FUTURE" in said
    settings = yaml.safe_load((run / "run.yaml").read_text())
    assert settings["calendar"] == ["weekday", "month"] and settings["held_out_ids"] == ["i2"]
    # nothing was learned from held-out items
    assert RunFolder(run).read_preprocessor().covariates["categories"]["store"] == ["s0", "s1"]

    predict = ["predict", run, "--input", folder / "sales.csv", "--output", folder / "f.csv"]
    main([str(word) for word in [*predict, "--future", folder / "next.parquet"]])
    out = pd.read_csv(folder / "f.csv", parse_dates=["timestamp"]).merge(df, on=["item_id", "timestamp"])
    assert len(out) == 3 * H and (out["predictions"] - out["target"]).abs().mean() < 1.0
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in predict])
    assert end.value.code == 2 and "as future_df" in capsys.readouterr().err

    main(["backtest", str(run), "--input", str(folder / "all.csv"), "--n_windows", "2"])
    assert "ridge_covariates" in capsys.readouterr().out


def test_items_are_held_out_by_name(folder, df):
    panel = Panel.from_df(past(df).assign(item_id=past(df)["item_id"].str[1:].astype(int)))
    assert list(panel.without(["1"]).ids) == [0, 2]
    for names, message in ((["7"], "no item '7' to hold out"), (["0", "1", "2"], "no item")):
        with pytest.raises(InputError, match=message):
            Forecaster.fit(panel, **LENGTHS, held_out_ids=names, output_dir=folder / "none", **SMALL)
