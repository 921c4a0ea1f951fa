import sys

import pytest
import torch
from check import (
    DTYPES,
    EXAMPLES,
    LAYOUTS,
    assert_close_to_ref,
    config_id,
    gpu_configs,
    grads_of,
    in_layout,
    use_config,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from llata_fast.kernels import forecast_losses, forecast_losses_ref

module = sys.modules[forecast_losses.__module__]
KINDS = module.KINDS

# B, H, C
CASES = {
    "ones": (1, 1, 1),
    "several blocks, none full": (3, 19, 5),
    "full blocks": (2, 16, 4),
    "a long horizon": (1, 70, 3),
}


def make_inputs(B, H, C, dtype=torch.float32, missing=0.3, device="cpu"):
    draw = lambda *shape: torch.randn(shape, device=device)
    target = (5 + 3 * draw(B, H, C)).masked_fill(torch.rand(B, H, C, device=device) < missing, torch.nan)
    units = 4 + draw(B, C), 0.3 + draw(B, C).abs()
    return draw(2 * B, C, H).to(dtype), *units, target, 0.2 + draw(B, C).abs()


def check(normalised, loc, scale, target, insample_scale, task, consistency, steps=0):
    B, H, C = target.shape
    dforecasts = torch.randn(2 * B, H, C, device=target.device)
    # gradients of a mean shrink with its size; this factor keeps them above the absolute tolerance
    size = target.numel() ** 0.5

    def run(fn, change):
        trained = {"normalised": change(normalised.detach()).requires_grad_()}
        units = [change(t) for t in (loc, scale, target, insample_scale)]
        forecasts, *losses = fn(
            trained["normalised"], *units[:3], task=task, consistency=consistency, consistency_weight=0.7,
            insample_scale=units[3],
        )  # fmt: skip
        names = ("task", "consistency", "total")
        result = {"forecasts": forecasts.detach()}
        result |= {name: loss.detach() for name, loss in zip(names, losses, strict=True) if loss is not None}
        both = (forecasts * dforecasts.to(forecasts.dtype)).sum(dtype=torch.float64)
        both = both + sum(
            weight * size * loss for weight, loss in zip((2, 3, 5), losses, strict=True) if loss is not None
        )
        return result | grads_of(both, torch.ones((), device=target.device), trained)

    out = run(forecast_losses, lambda t: t)
    eager = run(forecast_losses_ref, lambda t: t.contiguous())
    exact = run(forecast_losses_ref, lambda t: t.double())
    for name in out:
        assert_close_to_ref(name, out[name], eager[name], exact[name], steps=steps)


# every kind once as task and once as consistency loss
PAIRS = list(zip(KINDS, (*KINDS[1:], None), strict=True))


@pytest.mark.parametrize("kinds", PAIRS, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, kinds, device):
    check(*make_inputs(*case, device=device), *kinds, steps=1)


@settings(max_examples=EXAMPLES // 6, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_and_layout(data, device):
    draw = data.draw
    sizes = [draw(st.integers(1, limit)) for limit in (4, 40, 9)]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    inputs = make_inputs(*sizes, draw(st.sampled_from(DTYPES)), draw(st.sampled_from([0.0, 0.3, 1.0])), device)
    inputs = [in_layout(t, draw(st.sampled_from(LAYOUTS))) for t in inputs]
    check(*inputs, draw(st.sampled_from(KINDS)), draw(st.sampled_from([*KINDS, None])), steps=2)


@pytest.mark.parametrize("config", gpu_configs("forecast_losses"), ids=config_id)
def test_every_config(config, monkeypatch, device):
    use_config(monkeypatch, config, device)
    check(*make_inputs(2, 150, 9, device=device), "smooth_l1", "mse", steps=1)


def losses(normalised, *others, **options):
    options = {"task": "l1", "consistency": "mse", "insample_scale": others[-1]} | options
    return forecast_losses(normalised, *others[:-1], **options)


@pytest.mark.parametrize("index", range(4))
def test_one_output_is_enough(index, device):
    normalised, *others = make_inputs(2, 5, 3, device=device)
    grads = []
    for fn in (forecast_losses, forecast_losses_ref):
        leaf = normalised.clone().requires_grad_()
        outputs = fn(leaf, *others[:-1], task="l1", consistency="mse", consistency_weight=0.5)
        grads.append(torch.autograd.grad(outputs[index].square().sum(), leaf)[0])
    torch.testing.assert_close(*grads)


def test_a_diverged_branch_is_not_taken_for_missing(device):
    normalised, *others = make_inputs(2, 5, 3, device=device)
    normalised[2] = torch.nan
    _, task, apart, total = losses(normalised.requires_grad_(), *others)
    assert task.isfinite() and apart.isnan() and total.isnan()
    (grad,) = torch.autograd.grad(total, normalised)
    # the forecasts that it reached, and nothing else
    assert grad[::2].isnan().all() and grad[1::2].isfinite().all()


def test_without_observed_targets_the_loss_is_zero(device):
    normalised, *others = make_inputs(2, 5, 3, missing=2.0, device=device)
    _, task, apart, total = losses(normalised.requires_grad_(), *others, consistency=None)
    assert task == total == 0 and apart is None
    assert not torch.autograd.grad(total, normalised)[0].any()


def test_smape_of_two_zeros_is_zero(device):
    """Forecast and target 0 give an error of 0, not 0 / 0."""
    normalised, units = torch.zeros(4, 3, 5, device=device, requires_grad=True), torch.zeros(2, 3, device=device)
    _, task, apart, total = forecast_losses(
        normalised, units, units + 1, torch.zeros(2, 5, 3, device=device), task="smape", consistency="smape"
    )
    assert task == apart == 0 and not torch.autograd.grad(total, normalised)[0].any()


def test_two_runs_are_bit_equal(device):
    normalised, *others = make_inputs(3, 70, 9, device=device)
    runs = []
    for _ in range(2):
        *_, total = losses(normalised.requires_grad_(), *others)
        runs.append((total.detach(), *torch.autograd.grad(total, normalised)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# B, H, C
LARGE = {"ETT": (256, 96, 7), "Weather": (64, 720, 21), "Traffic": (16, 96, 862)}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_shapes_that_matter(case, kind, device):
    check(*make_inputs(*case, torch.bfloat16, device=device), kind, kind, steps=2)


def test_wrong_inputs():
    inputs = make_inputs(2, 5, 3)
    normalised, loc, scale, target, insample_scale = inputs
    wrong = [
        ((normalised[:3], *inputs[1:]), {}, r"normalised: expected \[2B, C, H\] with 2B = 4, got \[3, 3, 5\]"),
        ((normalised, loc[:1], *inputs[2:]), {}, r"loc: expected \[B, C\] with B = 2, got \[1, 3\]"),
        ((normalised, loc, scale, target[0], insample_scale), {}, r"target: expected \[B, H, C\], got \[5, 3\]"),
        ((normalised.int(), *inputs[1:]), {}, r"normalised: expected torch.float32 or .*, got torch.int32"),
        (inputs, {"task": "l2"}, r"task: expected one of l1, .*, got 'l2'"),
        (inputs, {"task": None}, r"task: expected one of l1, .*, got None"),
        (inputs, {"consistency": "l2"}, r"consistency: expected one of l1, .*, got 'l2'"),
        (inputs, {"task": "mase", "insample_scale": None}, r"mase: expected insample_scale \[B, C\], got None"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            losses(*arguments, **options)
