"""The study of the language model's use: its targets, its equally large models, and its report."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import random_backbone, tiny_model

from llata_fast.backbone.loading import load_backbone_weights, read_backbone_config
from llata_fast.data.corpus_windows import in_own_units

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    """The study's modules by name."""
    names = ("question_data", "question_forecasts", "question_backbones", "question", "question_report")
    modules = {}
    for name in names:
        spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
        modules[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    yield modules
    for name in names:
        sys.modules.pop(name)


@pytest.fixture
def target(bench):
    """Two waves with a period of 8 steps, one ten times as large as the other, with two windows each."""
    steps = np.arange(2000)
    waves = np.stack([np.sin(steps * 2 * np.pi / 8), 10 * np.sin(steps * 2 * np.pi / 8 + 1)])
    past = np.concatenate([waves[:, 800:1312], waves[:, 900:1412]])
    future = np.concatenate([waves[:, 1312:1328], waves[:, 1412:1428]])
    kind = bench["question_data"].Target
    return kind("waves", "h", 8, (8, 16), past, future, list(waves[:, :800]), False, np.array([1.0, 10, 1, 10]))


def test_a_season_that_returns_is_forecast_without_error(bench, target):
    data = bench["question_data"]
    for predict in (data.seasonal_naive(target), data.linear_map(target.few_rows(100), 64, 16)):
        rows = target.scores(lambda past, horizon, predict=predict: predict(past, horizon) + 0.5)
        assert [row["horizon"] for row in rows] == [8, 16]
        # errors of half a unit on waves with deviations 1 and 10
        assert rows[0]["mae"] == pytest.approx((0.5 + 0.05) / 2, rel=0.05)
        assert rows[1]["mse"] == pytest.approx((0.25 + 0.0025) / 2, rel=0.1)


def test_few_rows_are_a_share(bench, target):
    assert [len(values) for values in target.few_rows(5)] == [40, 40]
    by_item = bench["question_data"].Target(
        "p", "h", 8, (8,), *np.zeros((2, 1, 8)), [np.arange(n) for n in range(40)], True
    )
    assert len(by_item.few_rows(10)) == 4 and len(by_item.few_rows(1)) == 1


def test_no_row_of_a_target_is_tested_and_trained_on(bench, tmp_path):
    """In a wide series, windows lie in the test rows and training rows lie before them."""
    rng = np.random.default_rng(0)
    rows = 5000
    dates = pd.date_range("2020-01-01", periods=rows, freq="h")
    pd.DataFrame(rng.normal(size=(rows, 2)), dates, ["a", "b"]).rename_axis("date").to_csv(tmp_path / "s.csv")
    found = bench["question_data"]._series(str(tmp_path / "s.csv"), "h", 24, (96,), None)
    assert found.past.shape == (36, 512) and len(found.rows[0]) == 3500
    tested = set(found.future.ravel().round(9))
    assert not tested & set(np.concatenate(found.rows).round(9))


def test_models_train_as_many_parameters_as_they_can(bench):
    question = bench["question"]
    counts = {
        model: question.trained_parameters(question.model_settings(question.Pretraining("main", model, 0, 320)))
        for model in question.ABLATION_OF
    }
    for model in ("no_llm", "no_text_branch", "random_prototypes"):
        assert counts[model] == pytest.approx(counts["llata"], rel=1e-3)
    # its blocks alone have more parameters than llata trains
    assert counts["llata"] < counts["random_init"] < 1.2 * counts["llata"]


def test_a_row_is_made_once(bench, tmp_path):
    table = bench["question"].Table(tmp_path / "rows.csv", ("model", "change", "seed"))
    assert not table.holds(("llata", "", 0))
    table.add([{"model": "llata", "change": "", "seed": 0, "mase": 1.0}])
    again = bench["question"].Table(tmp_path / "rows.csv", ("model", "change", "seed"))
    assert again.holds(("llata", "", 0)) and not again.holds(("llata", "no LoRA", 0))


def test_rows_whose_weights_are_gone_are_made_anew(bench, target, tmp_path, monkeypatch):
    """Missing rows are computed, with their pre-training if its weights are needed, and nothing twice."""
    question, made, scored = bench["question"], [], []
    pretraining = question.Pretraining("main", "no_llm", 0, 32)

    def pretrain(pretraining, corpora, folder):
        made.append(pretraining.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "whole").touch()
        return dict(zip(question.KEY, pretraining.key, strict=True))

    def score_trained(pretraining, folder, goals, work, table, shares):
        assert (folder / "whole").exists()
        for percent in shares:
            if not table.holds(pretraining.key, percent, "waves"):
                scored.append(percent)
                row = dict(zip(question.KEY, pretraining.key, strict=True))
                table.add([row | {"percent": percent, "target": "waves", "horizon": horizon} for horizon in (8, 16)])

    stand_ins = {
        "pretrain": pretrain,
        "score_trained": score_trained,
        "is_whole": lambda folder: (folder / "whole").exists(),
        "targets": lambda *_: [target],
        "build_corpora": lambda *_: None,
        "pretrainings": lambda *_: [pretraining],
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(question, name, stand_in)
    options = SimpleNamespace(out=tmp_path / "out", work=tmp_path / "work", parts=["main"], data_dir="", retail=None)
    question.study(options)
    assert len(made) == 1 and scored == [0.0, 1.0, 5.0, 10.0]
    question.study(options)
    assert len(made) == 1 and len(scored) == 4
    rows = pd.read_csv(options.out / "scores.csv")
    rows[rows.percent != 5].to_csv(options.out / "scores.csv", index=False)
    shutil.rmtree(options.work)
    question.study(options)
    assert len(made) == 2 and scored[4:] == [5.0]
    assert len(pd.read_csv(options.out / "pretrainings.csv")) == 1
    assert len(pd.read_csv(options.out / "scores.csv")) == 8


def test_few_rows_are_trained_on_where_those_held_back_gain(bench, target, tmp_path, monkeypatch):
    """The held-out rows choose the penalty, or no change at all; the original model is not modified."""
    data, few = bench["question_data"], bench["question_forecasts"]
    # hundreds of windows: the interpreter would take minutes
    monkeypatch.setattr("llata_fast.kernels._launch.ENABLED", False)
    sizes = {"context_length": data.CONTEXT, "prediction_length": data.HORIZON, "quantile_levels": [0.1, 0.5]}
    sizes |= {"patch_length": data.PATCH, "patch_stride": data.PATCH, "intermediate_size": 16}
    model = tiny_model(random_backbone(tmp_path), ablation="no_llm", num_layers=1, num_channels=1, **sizes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept, penalty = few.tuned(model, target, 100, tmp_path, 0)
    assert penalty in few.PENALTIES
    held_back = few.held_back_windows(target, 100, tmp_path, 0)[1]
    windows = held_back.__getitems__(range(len(held_back)))

    @torch.no_grad()
    def error(of):
        return float(few.known_of(of, windows)[1].abs().nanmean())

    # waves that a model of random weights does not know
    assert error(kept) < 0.5 * error(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # what is fitted is wrong behind those rows: a change for the worse is none
    far = {"future_values": torch.full((few.FEW_WINDOWS, data.HORIZON, 1), 100.0)}
    monkeypatch.setattr(few, "in_own_units", lambda raw: in_own_units(raw) | far)
    assert few.tuned(model, target, 100, tmp_path, 0) == (model, np.inf)


def test_backbones_are_changed_in_one_respect(bench, tmp_path):
    source = random_backbone(tmp_path, "llama", num_hidden_layers=5)
    backbones, name = bench["question_backbones"], "layers.0.mlp.down_proj.weight"

    def blocks(source, num_layers=1):
        return load_backbone_weights(source, read_backbone_config(source, num_layers)).blocks

    original, words = blocks(source), load_backbone_weights(source, read_backbone_config(source, 1)).word_embeddings
    scaled = blocks(backbones.scaled_backbone(tmp_path, 1, source))
    torch.testing.assert_close(scaled[name] * words.square().mean().sqrt(), original[name])
    assert torch.equal(scaled["layers.0.mlp.up_proj.weight"], original["layers.0.mlp.up_proj.weight"])
    middle = blocks(backbones.middle_backbone(tmp_path, 1, source))
    assert torch.equal(middle[name], blocks(source, 5)["layers.2.mlp.down_proj.weight"])
    drawn = blocks(backbones.random_backbone(tmp_path, 1, source))
    assert drawn[name].std() == pytest.approx(float(original[name].std()), rel=0.1)
    assert abs(torch.corrcoef(torch.stack([drawn[name].ravel(), original[name].ravel()]))[0, 1]) < 0.2


def test_the_report_tells_difference_and_interval(bench, tmp_path):
    """Seeds in which llata is 1, 2 and 3 percent better: 2 on average, and Student's interval of three of them."""
    rows = []
    for seed in range(3):
        for model, mase in (("llata", np.exp(-0.01 * (seed + 1))), ("no_llm", 1.0)):
            rows.append({"model": model, "seed": seed, "percent": 0.0, "target": "t", "horizon": 96, "mase": mase})
    rows.append({"model": "seasonal_naive", "seed": 0, "percent": 0.0, "target": "t", "horizon": 96, "mase": 1.0})
    report = bench["question_report"]
    report_rows = pd.DataFrame(rows)
    report.TARGETS, kept = ("t",), report.TARGETS
    try:
        table = report.differences(report.over_naive(report_rows))
    finally:
        report.TARGETS = kept
    cell = table.iloc[0]["all"]
    assert cell == "-2.0 [-4.5, +0.5]"


@pytest.mark.parametrize(
    "arguments, message",
    [(["--plot", "--out", "absent"], "absent holds no pretrainings.csv"), (["--windows", "31"], "at least 32")],
)
def test_bad_input(bench, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["question.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        bench["question"].main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_data_that_is_not_there_ends_in_one_line(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["question.py", "--data_dir", "absent", "--out", "out", "--work", "work"])
    with pytest.raises(SystemExit) as stopped:
        bench["question"].main()
    assert stopped.value.code == 2 and "data_dir absent is not a folder" in capsys.readouterr().err


def test_the_report_is_made_of_the_committed_rows(bench, tmp_path):
    for name in ("pretrainings.csv", "scores.csv"):
        shutil.copy(BENCH / "results" / "question" / name, tmp_path)
    bench["question_report"].write_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text == (BENCH / "results" / "question" / "README.md").read_text()
    assert (tmp_path / "question.png").stat().st_size > 10_000
