"""tune.py keeps only configs that beat the table by more than the spread and give the same result."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from llata_fast.kernels import configs, providers, twin_norm


@pytest.fixture
def tune(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    module = importlib.import_module("tune")
    monkeypatch.setattr(configs, "TABLE", dict(configs.TABLE))
    monkeypatch.setattr(providers, "TABLE", dict(providers.TABLE))
    return module


@pytest.fixture
def config():
    return configs.TABLE["twin_norm_fwd", "D <= 256", "any"]


def timed_by(tune, times):
    """A fake measurement: a config takes `times(config)` ± 0.1 ms."""
    timing = lambda config: tune.Timing(times(config), times(config) - 0.1, times(config) + 0.1)
    return lambda first, second, call: (timing(first), timing(second))


def test_faster_by_more_than_the_spread(tune):
    base = tune.Timing.of([t / 1e3 for t in (1.0, 1.1, 1.2, 1.3, 1.4)])
    assert base == tune.Timing(pytest.approx(1.2), pytest.approx(1.1), pytest.approx(1.3))
    assert tune.Timing(0.95, 0.9, 1.0).beats(base)
    assert not tune.Timing(1.05, 1.0, 1.1).beats(base) and not base.beats(base)


def test_the_best_becomes_the_targets_row(tune, config):
    # improved in two steps: first more warps, then one more stage
    times = lambda c: 3.0 - (c.num_warps == 4) - (c.num_warps == 4 and c.num_stages == 2)
    best = tune.tune(config, lambda: torch.ones(3), "sm_90", "case", timed_by(tune, times))
    assert (best.num_warps, best.num_stages, best.target) == (4, 2, "sm_90")
    assert best.reason.startswith("measured: case in 1.0000 ms, 3.0000 ms before, ")
    assert configs.TABLE["twin_norm_fwd", "D <= 256", "sm_90"] is best
    assert configs.TABLE["twin_norm_fwd", "D <= 256", "any"] is config


def test_without_a_gain_the_table_stays(tune, config):
    before = dict(configs.TABLE)
    assert tune.tune(config, lambda: torch.ones(3), "sm_90", "case", timed_by(tune, lambda c: 1.0)) is config
    assert configs.TABLE == before


def test_a_config_with_another_result_is_rejected(tune, config):
    def call():
        row = configs.TABLE["twin_norm_fwd", "D <= 256", "sm_90"]
        return torch.full((3,), 1.0 if row.num_warps == config.num_warps else 2.0)

    times = lambda c: 3.0 - (c.num_warps != config.num_warps)
    assert tune.tune(config, call, "sm_90", "case", timed_by(tune, times)) is config


def test_tables_are_written_as_they_are_read(tune, tmp_path, monkeypatch):
    for module, kind in ((configs, configs.Config), (providers, providers.Provider)):
        path = tmp_path / module.PATH.name
        tune.write(path, module.TABLE, kind)
        monkeypatch.setattr(module, "PATH", path)
        assert module.read_table() == module.TABLE


def test_rows_that_a_call_looks_up(tune, monkeypatch, device):
    x, norm = torch.ones(4, 8, device=device), torch.ones(8, device=device)
    call = lambda: twin_norm(x, norm, None, norm, None, num_time_rows=2, eps=1e-6, kind="rms")
    assert tune.asked_rows(call) == [("twin_norm", "D <= 256", "any")]
    row = providers.TABLE["twin_norm", "D <= 256", "any"]
    key = "twin_norm", "D <= 256", "interpreter"
    providers.TABLE[key] = dataclasses.replace(row, target="interpreter")
    if device.type == "cpu":
        assert tune.asked_rows(call) == [key]
