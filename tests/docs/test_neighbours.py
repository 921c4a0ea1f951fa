"""The page on other libraries: its code runs where they are installed; the model file trains as its host would."""

import argparse
import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import random_backbone, window

from llata_fast.data.panel import Panel
from llata_fast.forecasting.forecaster import Forecaster

pytestmark = pytest.mark.usefixtures("plain_ops")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "neighbours.md"
BLOCKS = {
    title: code
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[:1]
}
TINY = {"num_layers": 1, "num_prototypes": 9, "intermediate_size": 20, "max_steps": 2, "batch_size": 8}
TINY |= {"report_to": "none", "disable_tqdm": True, "precision": "fp32"}
NEEDS = {"PEFT": "peft", "ONNX": "onnxruntime", "sktime": "sktime", "gluonts": None, "fev": "fev"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a long table and a run on it."""
    folder = tmp_path_factory.mktemp("neighbours")
    days = pd.date_range("2024-01-01", periods=90)
    quantities = {name: 20 + scale * np.sin(np.arange(90) / 2) for name, scale in (("A-1", 5), ("B-2", 9))}
    table = pd.concat([pd.DataFrame({"sku": name, "date": days, "qty": qty}) for name, qty in quantities.items()])
    table.to_parquet(folder / "sales.parquet", index=False)
    panel = Panel.from_df(table, "sku", "date", "qty")
    settings = TINY | {"backbone": random_backbone(folder)}
    Forecaster.fit(panel, prediction_length=7, context_length=28, output_dir=folder / "runs" / "sales", **settings)
    return folder


def test_every_block_is_run():
    assert set(BLOCKS) == {*NEEDS, "Time-Series-Library"}


@pytest.mark.parametrize("title", NEEDS)
def test_block_runs(title, folder, monkeypatch):
    if NEEDS[title] is not None and importlib.util.find_spec(NEEDS[title]) is None:
        pytest.skip(f"{NEEDS[title]} is not installed here")
    monkeypatch.chdir(folder)
    names = {"TINY": TINY | {"backbone": random_backbone(folder)}}
    exec(compile(BLOCKS[title].replace('{"max_steps": 200}', "TINY"), title, "exec"), names)
    if title == "ONNX":
        assert names["points"].shape == (5, 7, 1) and names["quantiles"].shape == (5, 7, 1, 3)
    elif title == "fev":
        assert np.isfinite(names["summary"]["test_error"])
    elif title == "PEFT":
        assert (folder / "adapter" / "adapter_config.json").is_file()


@pytest.fixture
def model(tmp_path):
    """The model file's class, constructed as Time-Series-Library does it."""
    names: dict = {}
    exec(compile(BLOCKS["Time-Series-Library"], "models/LLaTA.py", "exec"), names)
    sizes = {"task_name": "long_term_forecast", "seq_len": 12, "pred_len": 5, "label_len": 6, "enc_in": 3}
    configs = argparse.Namespace(**sizes, backbone=random_backbone(tmp_path), llm_layers=2)
    return names["Model"], configs


def test_model_file_is_short():
    assert len([line for line in BLOCKS["Time-Series-Library"].splitlines() if line.strip()]) <= 40


def test_model_file_trains_as_time_series_library_trains(model):
    make, configs = model
    network = make(configs).float().train()
    past, future = window(8)
    # its decoder's input: the labels, then zeros in place of the horizon
    marks, decoder = torch.zeros(8, 12, 4), torch.cat((past[:, -6:], torch.zeros(8, 5, 3)), 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        outputs = network(past, marks, decoder, marks)[:, -5:]
        losses.append(torch.nn.functional.mse_loss(outputs, future))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    # the task loss alone does not reach weights that only the losses between the branches train
    assert network.forecaster.cross_attention.q_proj.weight.grad.abs().sum() > 0
    assert network.forecaster.alignment.time_weight.grad.abs().sum() > 0
    network.eval()
    with torch.no_grad():
        assert network(past, marks, decoder, marks).shape == (8, 5, 3)


def test_model_file_gives_the_gradients_of_the_method(model):
    make, configs = model
    torch.manual_seed(0)
    network = make(configs).train()
    for module in network.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    past, future = window(4)
    torch.nn.functional.mse_loss(network(past, None, None, None), future).backward()
    got = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    assert network.forecaster.config.task_loss == "mse"
    network.forecaster(past, future_values=future).loss.backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_model_file_forecasts_alone(model):
    make, configs = model
    configs.task_name = "anomaly_detection"
    with pytest.raises(ValueError, match="forecasts"):
        make(configs)
