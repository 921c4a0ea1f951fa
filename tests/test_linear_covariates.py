"""Linear effects of covariates: found where there is one, step by step where steps differ, and nowhere else."""

import numpy as np
import pandas as pd
import pytest
import torch

from llata_fast.data.panel import Panel
from llata_fast.data.panel_windows import panel_splits
from llata_fast.linear_covariates import MOST_CATEGORIES, LinearCovariates, Residuals, RidgeOnResiduals

SIZES = {"known": [0, 3], "past": [0], "static": []}
L, H = 6, 4


def covariates(batch=64):
    past, future = torch.randn(batch, L, 3), torch.randn(batch, H, 2)
    for values in (past, future):
        values[..., 1] = torch.randint(0, 4, values.shape[:2]).float()
    return past, future


def test_features_are_differences_from_the_lookback():
    past = torch.tensor([[[1.0, 2.0, 5.0], [3.0, torch.nan, 7.0], [torch.nan, 1.0, torch.nan]]])
    future = torch.tensor([[[4.0, 2.0], [torch.nan, 0.0]]])
    found = LinearCovariates(SIZES, 2, 1).features(past, future)
    # the number minus its mean 2 (deviation 1), twice; one of two categories of each kind; the last value minus 6
    expected = [[[2.0, 2.0, -0.5, 0.5, 0.0, 1.0, 1.0], [0.0, 0.0, -0.5, -0.5, 0.0, 1.0, 1.0]]]
    torch.testing.assert_close(found, torch.tensor(expected))
    nothing = LinearCovariates(SIZES, 2, 1).features(past * torch.nan, future * torch.nan)
    assert (nothing == 0).all()
    wide = LinearCovariates(SIZES | {"known": [0, MOST_CATEGORIES + 1]}, 2, 1).features(past, future)
    assert wide.shape == (1, 2, 4)


@pytest.mark.parametrize("kind", ["shared", "by step", "none"])
def test_an_effect_is_found_only_where_there_is_one(kind):
    truth = torch.zeros(2, 7, H)
    if kind != "none":
        truth += torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5, 0.7, 0.3])[:, None]
    if kind == "by step":
        truth[:, 0] *= torch.tensor([1.0, -1.0, 3.0, 0.0])
    part = LinearCovariates(SIZES, H, 2)

    def residuals(seed):
        torch.manual_seed(seed)
        for _ in range(40):
            past, future = covariates()
            scale = torch.rand(64, 2) + 0.5
            errors = torch.einsum("bhf,cfh->bhc", part.features(past, future), truth) * scale[:, None]
            errors = errors + torch.randn_like(errors)
            errors[torch.rand_like(errors) < 0.1] = torch.nan
            yield Residuals(past, future, errors, scale)

    part.fit(lambda: residuals(1), lambda: residuals(2))
    if kind == "none":
        # what noise alone gives on 2,560 windows
        assert part.weight.abs().max() < 0.1
        return
    # a category's columns and the lookback's mean share a level, which affects no forecast
    past, future = covariates(512)
    effects = [torch.einsum("bhf,cfh->bhc", part.features(past, future), weight) for weight in (part.weight, truth)]
    assert (effects[0] - effects[1]).std() < 0.15 * effects[1].std()
    assert torch.equal(part.weight[..., :1].expand_as(part.weight), part.weight) == (kind == "shared")


def test_the_baseline_forecasts_what_a_covariate_drives():
    draws, rows = np.random.default_rng(0), 200
    x = draws.normal(size=rows)
    table = {"item_id": 1, "timestamp": np.arange(rows), "target": 5 + 2 * x + 0.1 * draws.normal(size=rows), "x": x}
    panel = Panel.from_df(pd.DataFrame(table), known_covariates="x")
    splits = panel_splits(panel, 12, H)
    baseline = RidgeOnResiduals(splits.train.encoding.sizes, splits.train, splits.val)
    past, observed, future = next(splits.val.batches(64))
    beside = splits.val.covariates(range(len(past)))
    with_it, without = (baseline(past, observed, **beside) - future), (baseline.linear(past, observed) - future)
    assert with_it.square().nanmean() < 0.05 * without.square().nanmean()
