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
from llata_fast.kernels import patch_embed, patch_embed_ref

# B, L, C, P, S, D
CASES = {
    "variate tokens of ETT": (2, 96, 7, 96, 96, 48),
    "patches": (1, 80, 5, 16, 8, 33),
    "patches, oldest values left out": (2, 52, 3, 8, 5, 16),
    "few patches": (2, 37, 3, 16, 8, 16),
    "stride beyond the patch": (1, 23, 2, 3, 7, 20),
    "window longer than a block": (1, 300, 2, 300, 300, 16),
    "many rows": (5, 12, 7, 12, 1, 8),
    "ones": (1, 1, 1, 1, 1, 1),
    "no windows": (0, 20, 3, 4, 4, 8),
}


def make_inputs(
    B, L, C, P, D, dtype,
    x_dtype=torch.float32, missing=0.0, layout="contiguous", mask_layout="contiguous", device="cpu",
):  # fmt: skip
    x = torch.randn(B, L, C, device=device) * 3 + 20
    observed_mask = None
    if missing:
        observed_mask = torch.rand(B, L, C, device=device) >= missing
        x = x.masked_fill(~observed_mask, float("nan"))
        observed_mask = in_layout(observed_mask, mask_layout)
    # scaling by P**-0.5 keeps tokens near unit size
    weight = torch.randn(D, P, device=device) * P**-0.5
    return (
        in_layout(x.to(x_dtype), layout),
        in_layout(weight.to(dtype), layout),
        in_layout(torch.randn(D, device=device).to(dtype), "contiguous" if layout == "transposed" else layout),
        observed_mask,
    )


def check(x, weight, bias, observed_mask, patch_length, patch_stride, steps=0):
    B, L, C = x.shape
    dtokens = torch.randn(B, C, (L - patch_length) // patch_stride + 1, len(bias), device=x.device)

    def run(fn, x, weight, bias):
        weight, bias = (t.detach().requires_grad_() for t in (weight, bias))
        sizes = {"patch_length": patch_length, "patch_stride": patch_stride}
        tokens, loc, scale = fn(x, weight, bias, **sizes, observed_mask=observed_mask)
        assert not loc.requires_grad and not scale.requires_grad
        grads = grads_of(tokens, dtokens, {"weight": weight, "bias": bias})
        return {"tokens": tokens.detach(), "loc": loc, "scale": scale, **grads}

    compare(run, x, weight, bias, op=patch_embed, op_ref=patch_embed_ref, steps=steps)


@pytest.mark.parametrize("missing", [0.0, 0.3], ids=["observed", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, dtype, missing, device):
    B, L, C, P, S, D = case
    check(*make_inputs(B, L, C, P, D, dtype, missing=missing, device=device), P, S)


@pytest.mark.parametrize("missing", [0.0, 0.3], ids=["observed", "masked"])
@pytest.mark.parametrize("case", ["window longer than a block", "patches, oldest values left out", "no windows"])
@pytest.mark.parametrize("provider", ["triton", "library"])
def test_both_providers_match_reference(provider, case, missing, monkeypatch, device):
    use_provider(monkeypatch, "patch_embed", provider)
    B, L, C, P, S, D = CASES[case]
    check(*make_inputs(B, L, C, P, D, torch.float16, missing=missing, device=device), P, S)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_layout_and_mask(data, device):
    draw = data.draw
    B, C, D = draw(st.integers(0, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 18))
    L = draw(st.integers(1, 36))
    P, S = draw(st.integers(1, L)), draw(st.integers(1, 12))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    inputs = make_inputs(
        B, L, C, P, D,
        dtype=draw(st.sampled_from(DTYPES)),
        x_dtype=draw(st.sampled_from((torch.float32, torch.float16))),
        missing=draw(st.sampled_from((0.0, 0.2, 0.9))),
        layout=draw(st.sampled_from(LAYOUTS)),
        mask_layout=draw(st.sampled_from(LAYOUTS)),
        device=device,
    )  # fmt: skip
    check(*inputs, P, S, steps=1)


@pytest.mark.parametrize("config", gpu_configs("patch_embed"), ids=config_id)
def test_every_config(config, monkeypatch, device):
    use_config(monkeypatch, config, device)
    use_provider(monkeypatch, "patch_embed", "library" if "normalise" in config.kernel else "triton")
    shapes = {"patches": (40, 8, 4), "short window": (40, 40, 40)}
    L, P, S = shapes.get(config.shape_class.split(", ")[0], (300, 300, 300))
    check(*make_inputs(2, L, 5, P, 20, config_dtype(config), missing=0.2, device=device), P, S)


def test_series_far_from_zero(device):
    """At 1e6 +- 1 the level takes 20 of fp32's 24 bits; only exact differences keep the rest."""
    x, weight, bias, _ = make_inputs(2, 96, 7, 96, 48, torch.float32, device=device)
    x = 1e6 + torch.rand_like(x) * 2 - 1
    dtokens = torch.randn(2, 7, 1, 48, device=device)

    def run(fn, *tensors):
        x, *parameters = (t.detach().requires_grad_() for t in tensors)
        tokens, loc, scale = fn(x.detach(), *parameters, patch_length=96, patch_stride=96)
        return tokens.detach(), scale, grads_of(tokens, dtokens, {"weight": parameters[0]})["dweight"], loc

    *out, loc = run(patch_embed, x, weight, bias)
    *exact, exact_loc = run(patch_embed_ref, x.double(), weight.double(), bias.double())
    for ours, theirs in zip(out, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)
    ulp = torch.finfo(torch.float32).eps * 2**19
    assert (loc.double() - exact_loc).abs().max() <= ulp


def test_window_without_observed_values(device):
    x, weight, bias, _ = make_inputs(2, 20, 3, 5, 8, torch.float32, device=device)
    observed_mask = torch.ones_like(x, dtype=torch.bool)
    observed_mask[1, :, 2] = False
    x[1, :, 2] = float("nan")
    tokens, loc, scale = patch_embed(x, weight, bias, patch_length=5, patch_stride=5, observed_mask=observed_mask)
    torch.testing.assert_close(tokens[1, 2], bias.expand(4, -1))
    assert loc[1, 2] == 0
    torch.testing.assert_close(scale[1, 2].item(), 1e-5**0.5)
    assert tokens.isfinite().all() and loc[1, 1] != 0


def test_constant_window(device):
    weight, bias = torch.randn(8, 4, device=device), torch.randn(8, device=device)
    tokens, loc, scale = patch_embed(
        torch.full((1, 12, 2), 1e4 + 1 / 3, device=device), weight, bias, patch_length=4, patch_stride=4
    )
    torch.testing.assert_close(tokens, bias.expand(1, 2, 3, -1))
    torch.testing.assert_close(scale, torch.full_like(scale, 1e-5**0.5))


def test_eps_enters_the_scale(device):
    x, weight, bias, _ = make_inputs(1, 12, 2, 4, 8, torch.float32, device=device)
    run = lambda fn: fn(x, weight, bias, patch_length=4, patch_stride=4, eps=2.0)
    for ours, theirs in zip(run(patch_embed), run(patch_embed_ref), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_autocast_keeps_the_series_in_fp32(device):
    x, weight, bias, _ = make_inputs(1, 24, 2, 8, 16, torch.float32, device=device)
    with torch.autocast(device.type, dtype=torch.float16):
        tokens, loc, scale = patch_embed(x + 1e4, weight, bias, patch_length=8, patch_stride=8)
    assert (tokens.dtype, loc.dtype, scale.dtype) == (torch.float16, torch.float32, torch.float32)
    torch.testing.assert_close(
        scale, patch_embed_ref(x, weight, bias, patch_length=8, patch_stride=8)[2], rtol=1e-3, atol=0
    )


def test_wrong_inputs():
    x, weight, bias, mask = make_inputs(2, 12, 3, 4, 8, torch.float32, missing=0.5)
    good = {"x": x, "weight": weight, "bias": bias, "patch_length": 4, "patch_stride": 4, "observed_mask": mask}
    wrong = [
        ({"x": x[0]}, r"x: expected \[B, L, C\], got \[12, 3\]"),
        ({"x": x[:, :, :0]}, r"x: expected \[B, L, C\] with C >= 1, got \[2, 12, 0\]"),
        ({"x": x.double()}, r"x: expected torch.float32 or .*, got torch.float64"),
        ({"weight": weight[:, :3]}, r"weight: expected \[D, P\] with P = 4, got \[8, 3\]"),
        ({"weight": weight.int()}, r"weight: expected torch.float32 or .*, got torch.int32"),
        ({"weight": weight.to("meta")}, r"weight: expected a tensor on cpu, got meta"),
        ({"bias": bias[:7]}, r"bias: expected \[D\] with D = 8, got \[7\]"),
        ({"bias": bias.half()}, r"bias: expected torch.float32, got torch.float16"),
        ({"observed_mask": mask[:1]}, r"observed_mask: expected \[B, L, C\] with B = 2, got \[1, 12, 3\]"),
        ({"observed_mask": mask.float()}, r"observed_mask: expected torch.bool, got torch.float32"),
        ({"patch_length": 0}, r"expected 1 <= patch_length <= L = 12 and patch_stride >= 1, got patch_length 0"),
        ({"patch_length": 13}, r"got patch_length 13, patch_stride 4"),
        ({"patch_stride": 0}, r"got patch_length 4, patch_stride 0"),
    ]
    patch_embed(**good)
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            patch_embed(**{**good, **change})


# B, L, C, P, S, D
LARGE = {
    "ETT": (256, 96, 7, 96, 96, 768),
    "Weather": (64, 96, 21, 96, 96, 768),
    "Traffic": (16, 96, 862, 96, 96, 768),
    "Traffic, long window": (16, 2048, 862, 2048, 2048, 768),
    "ECL patches": (32, 512, 321, 16, 8, 768),
    "large backbone": (32, 96, 321, 96, 96, 4096),
}


@pytest.mark.gpu
@pytest.mark.parametrize("missing", [0.0, 0.3], ids=["observed", "masked"])
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_shapes_that_matter(case, missing, device):
    B, L, C, P, S, D = case
    # sums over thousands of rows: a rounding step is large compared with the absolute tolerance
    check(*make_inputs(B, L, C, P, D, torch.bfloat16, missing=missing, device=device), P, S, steps=2)


@pytest.mark.gpu
def test_tokens_beyond_two_to_the_31(device):
    x, weight, bias, _ = make_inputs(48, 512, 862, 16, 832, torch.bfloat16, device=device)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    sizes = {"patch_length": 16, "patch_stride": 8}
    tokens, _, _ = patch_embed(x, weight, bias, **sizes)
    assert tokens.numel() > 2**31
    # only the last window counts, so the whole batch must give the gradients of this window alone
    expected, _, _ = patch_embed_ref(x[-1:], weight, bias, **sizes)
    torch.testing.assert_close(tokens[-1:], expected, rtol=2e-2, atol=2e-2)
    dtokens = torch.zeros_like(tokens)
    dtokens[-1] = torch.randn_like(expected[0])
    ours = torch.autograd.grad(tokens, (weight, bias), dtokens)
    for grad, exact in zip(ours, torch.autograd.grad(expected, (weight, bias), dtokens[-1:]), strict=True):
        assert (grad - exact).float().norm() <= 1e-2 * exact.float().norm()


@pytest.mark.gpu
def test_series_beyond_two_to_the_31(device):
    x = torch.randn(2600, 960, 862, device=device, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    weight, bias = torch.randn(16, 960, device=device) * 960**-0.5, torch.randn(16, device=device)
    ours = patch_embed(x, weight, bias, patch_length=960, patch_stride=960)
    exact = patch_embed_ref(x[-1:].double(), weight.double(), bias.double(), patch_length=960, patch_stride=960)
    for tensor, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(tensor[-1:].double(), expected, rtol=1e-4, atol=1e-4)
