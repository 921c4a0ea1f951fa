import sys

import pytest
import torch
from check import (
    DTYPES,
    EXAMPLES,
    LAYOUTS,
    compare,
    config_dtype,
    config_id,
    gpu_configs,
    grads_of,
    in_layout,
    use_config,
    use_provider,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from llata_fast.kernels import alignment_loss, alignment_loss_ref

module = sys.modules[alignment_loss.__module__]
KINDS = module.KINDS

# M, D, F
CASES = {
    "ones": (1, 1, 1),
    "several blocks, none full": (37, 41, 19),
    "full blocks": (32, 32, 16),
    "wide": (3, 70, 35),
    "no rows": (0, 5, 3),
}


def make_inputs(M, D, F, dtype, device="cpu"):
    # differences on both sides of smooth_l1's kink
    return [torch.randn(n, D, device=device).mul(D**-0.25).to(dtype) for n in (M, M, F, F)]


def check(time, text, time_weight, text_weight, kind, steps=0):
    M, F = len(time), len(time_weight)
    # gradients of a mean shrink with its size; this factor keeps them above the absolute tolerance
    dloss = torch.tensor(max(M * F, 1) ** 0.5, device=time.device)

    def run(fn, *tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        loss = fn(*tensors, kind=kind)
        names = ("time", "text", "time_weight", "text_weight")
        return {"loss": loss.detach(), **grads_of(loss, dloss, dict(zip(names, tensors, strict=True)))}

    compare(run, time, text, time_weight, text_weight, op=alignment_loss, op_ref=alignment_loss_ref, steps=steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, dtype, kind, device):
    check(*make_inputs(*case, dtype, device=device), kind)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_and_layout(data, device):
    draw = data.draw
    M, D, F = draw(st.integers(0, 20)), draw(st.integers(1, 36)), draw(st.integers(1, 18))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    tensors = make_inputs(M, D, F, draw(st.sampled_from(DTYPES)), device=device)
    tensors = (in_layout(t, draw(st.sampled_from(LAYOUTS))) for t in tensors)
    check(*tensors, draw(st.sampled_from(KINDS)), steps=1)


@pytest.mark.parametrize("config", gpu_configs("alignment_loss"), ids=config_id)
def test_every_config(config, monkeypatch, device):
    use_config(monkeypatch, config, device)
    use_provider(monkeypatch, "alignment_loss_backward", "triton")
    monkeypatch.setattr(module, "num_multiprocessors", lambda device: 2)
    # with one tile per multiprocessor, two 128 x 128 tiles on two multiprocessors count as many
    monkeypatch.setattr(module, "TILES_A_MULTIPROCESSOR", 1)
    rows = 150 if config.shape_class.startswith("many") else 20
    check(*make_inputs(rows, 40, 21, config_dtype(config), device=device), "smooth_l1")


@pytest.mark.parametrize("provider", ["triton", "library"])
@pytest.mark.parametrize("kind", KINDS)
def test_fp32_backward_in_parts(kind, provider, device, monkeypatch):
    use_provider(monkeypatch, "alignment_loss_backward", provider)
    monkeypatch.setattr(module, "RECOMPUTED_ROWS", 16)
    check(*make_inputs(37, 20, 19, torch.float32, device=device), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_gradients_to_one_in_ten_thousand(kind, device):
    tensors = [t.requires_grad_() for t in make_inputs(33, 48, 20, torch.float32, device=device)]
    ours = torch.autograd.grad(alignment_loss(*tensors, kind=kind), tensors)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    for grad, exact in zip(ours, torch.autograd.grad(alignment_loss_ref(*doubles, kind=kind), doubles), strict=True):
        assert (grad - exact).norm() <= 1e-4 * exact.norm()


def test_half_precision_differences_near_its_limit(device):
    """The derivative of 40,000 squared, 80,000, is beyond fp16; the gradients are not."""
    time = torch.full((2, 4), 100.0, device=device).half().requires_grad_()
    weight = torch.full((3, 4), 100.0, device=device).half()
    loss = alignment_loss(time, torch.zeros_like(time), weight, weight, kind="mse")
    (dtime,) = torch.autograd.grad(loss, time, torch.tensor(1e-3, device=device))
    # 2 * 40,000 * 100 for each of 3 columns, over 6 elements
    torch.testing.assert_close(dtime, torch.full_like(dtime, 4e6 * 1e-3))


@pytest.mark.parametrize(
    ("dtype", "kind", "bytes_an_element"),
    [
        (torch.float16, "l1", 2),
        (torch.float16, "smooth_l1", 2),
        (torch.float16, "mse", 2),
        (torch.float32, "l1", 0),
        (torch.float32, "mse", 0),
    ],
    ids=str,
)
def test_backward_keeps_only_this_many_bytes(dtype, kind, bytes_an_element, device):
    M, D, F = 33, 8, 21
    tensors = [t.requires_grad_() for t in make_inputs(M, D, F, dtype, device=device)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        alignment_loss(*tensors, kind=kind)
    # inputs are kept too, but take no further memory
    own = [t for t in kept if t.data_ptr() not in {x.data_ptr() for x in tensors}]
    assert sum(t.numel() * t.element_size() for t in own) == bytes_an_element * M * F


# M, D, F
LARGE = {
    "ETT": (256 * 7, 768, 768),
    "Weather": (64 * 21, 768, 768),
    "ECL": (32 * 321, 768, 768),
    "Traffic": (16 * 862, 768, 768),
    "large backbone": (32 * 321, 4096, 4096),
}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_shapes_that_matter(case, kind, device):
    # sums over thousands of rows: a rounding step is large compared with the absolute tolerance
    check(*make_inputs(*case, torch.bfloat16, device=device), kind, steps=2)


@pytest.mark.gpu
def test_features_beyond_two_to_the_31(device):
    rows = 100
    M, D, F = 2_800_000, 768, 768
    time, text = (torch.zeros(M, D, device=device, dtype=torch.bfloat16) for _ in range(2))
    assert time.numel() > 2**31
    # only the last rows differ, so all rows together must give what these give alone
    inputs = make_inputs(rows, D, F, torch.bfloat16, device=device)
    time[-rows:], text[-rows:] = inputs[:2]
    tensors = [t.requires_grad_() for t in (time, text, *inputs[2:])]
    loss = alignment_loss(*tensors, kind="mse")
    ours = [loss, *torch.autograd.grad(loss, tensors, torch.tensor(float(M), device=device))]
    doubles = [t.detach().double().requires_grad_() for t in (time[-rows:], text[-rows:], *inputs[2:])]
    exact = alignment_loss_ref(*doubles, kind="mse") * (rows / M)
    theirs = [exact, *torch.autograd.grad(exact, doubles, torch.tensor(float(M), device=device).double())]
    assert not ours[1][:-rows].any() and not ours[2][:-rows].any()
    ours[1:3] = [grad[-rows:] for grad in ours[1:3]]
    for tensor, expected in zip(ours, theirs, strict=True):
        assert (tensor - expected).norm() <= 1e-2 * expected.norm()


def test_nothing_is_kept_without_gradients(device):
    tensors = make_inputs(3, 4, 5, torch.float16, device=device)
    assert not alignment_loss(*tensors, kind="l1").requires_grad
    time, text, *weights = tensors
    weights = [weight[None] for weight in weights]
    assert module.alignment_loss_fwd([time], [text], *weights, [1.0], "l1", False)[1].numel() == 0


def test_autocast(device):
    tensors = make_inputs(8, 16, 4, torch.float32, device=device)
    with torch.autocast(device.type, dtype=torch.float16):
        loss = alignment_loss(*tensors, kind="l1")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, alignment_loss(*(t.half() for t in tensors), kind="l1"))


def test_wrong_inputs():
    time, text, time_weight, text_weight = make_inputs(6, 4, 3, torch.float32)
    wrong = [
        ((time[0], text, time_weight, text_weight), r"time: expected \[M, D\], got \[4\]"),
        ((time, text[:5], time_weight, text_weight), r"text: expected \[M, D\] with M = 6, got \[5, 4\]"),
        ((time, text[:, :3], time_weight, text_weight), r"text: expected \[M, D\] with D = 4, got \[6, 3\]"),
        ((time, text, time_weight[:, :2], text_weight), r"time_weight: expected \[F, D\] with D = 4, got \[3, 2\]"),
        ((time, text, time_weight, text_weight[:2]), r"text_weight: expected \[F, D\] with F = 3, got \[2, 4\]"),
        ((time, text, time_weight[:0], text_weight[:0]), r"time_weight: expected \[F, D\] with F >= 1, got \[0, 4\]"),
        ((time.double(), text, time_weight, text_weight), r"time: expected torch.float32 or .*, got torch.float64"),
        ((time, text.half(), time_weight, text_weight), r"text: expected torch.float32, got torch.float16"),
        ((time, text, time_weight.to("meta"), text_weight), r"time_weight: expected a tensor on cpu, got meta"),
    ]
    for tensors, message in wrong:
        with pytest.raises(ValueError, match=message):
            alignment_loss(*tensors, kind="l1")
    with pytest.raises(ValueError, match="kind: expected one of l1, smooth_l1, mse, got 'huber'"):
        alignment_loss(time, text, time_weight, text_weight, kind="huber")
