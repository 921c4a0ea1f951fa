"""The protocols' lists of trials, and the table of results that is written row by row and read back."""

import pandas as pd
import pytest

from llata_fast.errors import InputError
from llata_fast.evaluation.protocols import (
    REFERENCE_NOTE,
    RESULT_COLUMNS,
    Results,
    Trial,
    markdown,
    means_over_seeds,
    trials,
)


def trial(**fields):
    given = {"protocol": "long_term", "dataset": "ETTh1", "target": "ETTh1", "horizon": 96, "percent": None}
    return Trial(**given | {"model": "llata", "recipe": "tuned", "seed": 1} | fields)


def test_baselines_are_scored_once_and_models_once_per_seed():
    found = trials("long_term", ["A"], horizons=[96, 192], models=["llata", "linear"], seeds=[1, 2], recipe="tuned")
    assert len(found) == len(set(found)) == 2 * (2 + 1)
    assert {(item.model, item.seed, item.recipe) for item in found} == {
        ("llata", 1, "tuned"),
        ("llata", 2, "tuned"),
        ("linear", None, ""),
    }
    zero = trials("zero_shot", ["A"], horizons=[96], models=["llata"], seeds=[1], recipe="", targets=["B", "C"])
    assert [(item.dataset, item.target) for item in zero] == [("A", "B"), ("A", "C")]
    assert len({item.folder for item in zero}) == 1, "one training serves every target"


def test_different_trainings_have_different_folders():
    variants = [
        trial(),
        trial(seed=2),
        trial(percent=10.0),
        trial(model="no_llm"),
        trial(horizon=192),
        trial(recipe="paper"),
    ]
    assert len({item.folder for item in variants}) == len(variants)


def test_written_rows_are_kept(tmp_path):
    path = tmp_path / "out" / "results.csv"
    results = Results(path)
    rows = [trial(), trial(percent=10.0), trial(model="linear", recipe="", seed=None)]
    for row in rows[:2]:
        results.add(row, mse=0.5, note='a "note", with a comma')
    again = Results(path)
    assert [row in again for row in rows] == [True, True, False]
    again.add(rows[2], mse=0.25)
    assert [row in Results(path) for row in rows] == [True] * 3
    assert list(pd.read_csv(path).columns) == list(RESULT_COLUMNS)
    assert pd.read_csv(path)["note"][0] == 'a "note", with a comma'


def test_another_scoring_adds_a_row(tmp_path):
    path = tmp_path / "results.csv"
    whole, untrainable = trial(), trial(percent=0.1)
    Results(path).add(whole, mse=0.5)
    Results(path).add(untrainable, note="not trainable: too few rows")
    assert [row in Results(path, reference=True) for row in (whole, untrainable)] == [False, True]
    Results(path, reference=True).add(trial(seed=2), mse=0.5, note=f"{REFERENCE_NOTE}: 3 windows left out")
    assert trial(seed=2) in Results(path, reference=True) and trial(seed=2) not in Results(path)


def test_refuses_another_table(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a table of results"):
        Results(path)


def test_mean_and_spread_over_seeds(tmp_path):
    path = tmp_path / "results.csv"
    results = Results(path)
    for seed, mse in ((1, 0.25), (2, 0.75)):
        results.add(trial(seed=seed), mse=mse, mae=mse, seconds=10 * seed, trained_parameters=1000, command=f"c{seed}")
    results.add(trial(model="linear", recipe="", seed=None), mse=0.5, mae=0.5, windows=7, command="c3")
    table = means_over_seeds(path).set_index("model")
    assert table.loc["llata", "mse_mean"] == 0.5 and table.loc["llata", "seconds"] == 15
    assert table.loc["llata", "mse_std"] == pytest.approx(0.5 / 2**0.5)
    assert table.loc["llata", "seeds"] == "1 2"
    text = markdown(path)
    assert "| 96 | llata tuned | 0.5000 ± 0.3536 | 0.5000 ± 0.3536 | 1 2 |  | 1,000 | 15 |" in text
    assert "| 96 | linear | 0.5000 | 0.5000 | none | 7 |" in text
    assert "c3" in text and "average" not in text


def test_average_over_horizons_of_models_that_have_them_all(tmp_path):
    path = tmp_path / "results.csv"
    results = Results(path)
    for horizon, mse in ((96, 0.25), (192, 0.5)):
        results.add(trial(horizon=horizon), mse=mse, mae=mse)
    results.add(trial(model="no_llm"), mse=0.1, mae=0.1)
    results.add(trial(model="no_llm", horizon=192), note="not trainable")
    text = markdown(path)
    assert "| average | llata tuned | 0.3750 | 0.3750 |" in text
    assert "| average | no_llm" not in text
    assert "not trainable" in text


def test_tables_are_sorted_by_horizon_with_the_method_first(tmp_path):
    path = tmp_path / "results.csv"
    results = Results(path)
    for horizon in (720, 96):
        for model in ("linear", "no_llm", "llata"):
            results.add(trial(model=model, horizon=horizon), mse=0.5, mae=0.5)
    rows = [line.split(" | ")[:2] for line in markdown(path).splitlines() if "0.5000" in line and "average" not in line]
    models = ["llata tuned", "no_llm tuned", "linear tuned"]
    assert rows == [[f"| {horizon}", model] for horizon in (96, 720) for model in models]
