"""The mixture of forecasts against scipy's, and the small weight of a form that fails somewhere."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from llata_fast.linear_mixture import mixture, relative_errors, worst_ratio


def test_the_mixture_is_optimal():
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(3, 400, generator=generator).double()
    scored = [torch.stack([truth[0], 0.8 * truth[1] + 0.2 * k, 0.9 * truth[2]]) for k in range(4)]
    found = mixture(scored, 0)
    assert found.sum().item() == pytest.approx(1) and (found >= 0).all()
    inside = {"type": "eq", "fun": lambda shares: shares.sum() - 1}
    best = min(
        minimize(
            lambda shares: worst_ratio(torch.as_tensor(shares), scored),
            start, bounds=[(0, 1)] * 3, constraints=[inside], method="SLSQP",
        ).fun
        for start in np.eye(3) / 2 + 1 / 6
    )  # fmt: skip
    assert worst_ratio(found, scored) == pytest.approx(best, abs=5e-3)


def test_the_baseline_keeps_nearly_all_weight_if_nothing_is_better_everywhere():
    errors = torch.randn(500, dtype=torch.float64)
    better_in_one = [torch.stack((errors, 0.5 * errors)), torch.stack((errors, 1.01 * errors))]
    assert mixture(better_in_one, 0)[0] > 0.95
    # the second form has the lower absolute error and the higher squared error
    few = torch.arange(500) < 100
    large = torch.stack((torch.where(few, 2.0, 0.1), torch.where(few, 2.1, 0.0))).double()
    assert relative_errors(torch.tensor([0.0, 1.0]).double(), large)[1] < 0.9
    assert worst_ratio(mixture([large], 0), [large]) < 1.005 < worst_ratio(torch.tensor([0.0, 1.0]).double(), [large])


def test_a_form_that_fails_at_one_origin_gets_little_weight():
    good, wild = torch.randn(1, 500).double(), torch.randn(1, 500).double()
    scored = [torch.cat((good, 0.9 * wild)) for _ in range(5)]
    assert mixture(scored, 0)[1] > 0.4
    scored[2] = torch.cat((good, 5 * wild))
    assert mixture(scored, 0)[1] < 0.15


def test_origins_without_errors_are_ignored():
    none, errors = torch.zeros(2, 0).double(), torch.randn(2, 300).double()
    torch.testing.assert_close(mixture([none, errors], 0), mixture([errors], 0))
    assert mixture([none], 1).tolist() == [0, 1]
