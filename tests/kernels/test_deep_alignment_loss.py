import sys

import pytest
import torch
from check import DTYPES, EXAMPLES, LAYOUTS, assert_close_to_ref, grads_of, in_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from llata_fast.kernels import alignment_loss, deep_alignment_loss, deep_alignment_loss_ref

kernels = sys.modules[alignment_loss.__module__]

# depths, M, D, F
CASES = {
    "ones": (1, 1, 1, 1),
    "several blocks, none full": (3, 37, 41, 19),
    "full blocks": (2, 32, 32, 16),
    "no rows": (2, 0, 5, 3),
}


def make_inputs(G, M, D, F, dtype, feature_dtype=None, device="cpu"):
    # differences on both sides of smooth_l1's kink, and of another size at every depth
    draw = lambda *shape: torch.randn(shape, device=device) * D**-0.25
    features = [(draw(2 * M, D) * (1 + g / 2)).to(feature_dtype or dtype) for g in range(G)]
    return features, draw(G, F, D).to(dtype), draw(G, F, D).to(dtype)


def check(features, time_weight, text_weight, kind, steps=0):
    G, F = time_weight.shape[:2]
    depth_weights = [0.8**g for g in range(G)][::-1]
    # gradients of a mean shrink with its size; this factor keeps them above the absolute tolerance
    dloss = torch.tensor(max(len(features[0]) // 2 * F, 1) ** 0.5, device=time_weight.device)

    def run(fn, change):
        tensors = {f"feature {g}": both for g, both in enumerate(features)}
        tensors |= {"time_weight": time_weight, "text_weight": text_weight}
        tensors = {name: change(t.detach()).requires_grad_() for name, t in tensors.items()}
        *both, time, text = tensors.values()
        loss = fn(both, time, text, depth_weights=depth_weights, kind=kind)
        return {"loss": loss.detach(), **grads_of(loss, dloss, tensors)}

    out = run(deep_alignment_loss, lambda t: t)
    eager = run(deep_alignment_loss_ref, lambda t: t.contiguous())
    # features are cast where they are read: that rounding belongs to the specification
    exact = run(deep_alignment_loss_ref, lambda t: t.to(time_weight.dtype).double())
    for name in out:
        assert_close_to_ref(name, out[name], eager[name], exact[name], steps=steps)


@pytest.mark.parametrize("kind", kernels.KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, dtype, kind, device):
    check(*make_inputs(*case, dtype, device=device), kind)


@settings(max_examples=EXAMPLES // 8, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_and_layout(data, device):
    draw = data.draw
    sizes = [draw(st.integers(low, high)) for low, high in ((1, 4), (0, 20), (1, 36), (1, 18))]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(DTYPES))
    features, *weights = make_inputs(*sizes, dtype, draw(st.sampled_from([dtype, torch.float32])), device)
    features = [in_layout(both, draw(st.sampled_from(LAYOUTS))) for both in features]
    weights = [in_layout(weight, draw(st.sampled_from(LAYOUTS))) for weight in weights]
    check(features, *weights, draw(st.sampled_from(kernels.KINDS)), steps=1)


def test_fp32_features_with_16_bit_weights(device):
    """fp32 features, like the residual stream under autocast: products in 16 bits, gradients of features in fp32."""
    features, *weights = make_inputs(2, 20, 24, 18, torch.float16, torch.float32, device)
    check(features, *weights, "l1")
    weights = [weight.float() for weight in weights]
    with torch.autocast(device.type, dtype=torch.float16):
        reference = deep_alignment_loss_ref(features, *weights, depth_weights=[1.0, 0.5], kind="l1")
        assert reference.dtype == torch.float32
        cast = deep_alignment_loss(features, *weights, depth_weights=[1.0, 0.5], kind="l1")
    halves = deep_alignment_loss(features, *(w.half() for w in weights), depth_weights=[1.0, 0.5], kind="l1")
    assert torch.equal(cast, halves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_more_depths_than_one_launch_takes(dtype, monkeypatch, device):
    monkeypatch.setattr(kernels, "DEPTHS_A_LAUNCH", 2)
    # fp32 also recomputes in parts
    monkeypatch.setattr(kernels, "RECOMPUTED_ROWS", 40)
    check(*make_inputs(5, 17, 20, 18, dtype, device=device), "smooth_l1")


def test_depths_of_two_dtypes(device):
    features, *weights = make_inputs(2, 20, 24, 18, torch.float16, torch.float32, device)
    check([features[0], features[1].half()], *weights, "smooth_l1")


def test_one_depth_is_the_loss_of_one_depth(device):
    (both,), *weights = make_inputs(1, 20, 24, 18, torch.float32, device=device)
    deep = deep_alignment_loss([both], *weights, depth_weights=[1.0], kind="mse")
    assert torch.equal(deep, alignment_loss(*both.chunk(2), *(weight[0] for weight in weights), kind="mse"))


# depths, M, D, F
LARGE = {
    "ETT": (7, 256 * 7, 768, 768),
    "ECL": (7, 32 * 321, 768, 768),
    "large backbone": (33, 32 * 321, 4096, 256),
}


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_shapes_that_matter(case, device):
    # sums over thousands of rows: a rounding step is large compared with the absolute tolerance
    check(*make_inputs(*case, torch.bfloat16, torch.float32, device=device), "l1", steps=2)


def test_wrong_inputs():
    features, *weights = make_inputs(2, 3, 4, 5, torch.float32)
    call = lambda features, *weights, depth_weights=(1.0, 1.0), kind="l1": deep_alignment_loss(
        features, *weights, depth_weights=depth_weights, kind=kind
    )
    wrong = [
        ((features[:1], *weights), r"expected 2 features and weights, got 1 and 2"),
        (([features[0], features[1][:4]], *weights), r"features\[1\]: expected \[2M, D\] with 2M = 6, got \[4, 4\]"),
        (([f[:5] for f in features], *weights), r"features: expected \[2M, D\], an even number of rows, got 5"),
        (([features[0], features[1].half()], *weights), r"features\[1\]: expected torch.float32 .*got torch.float16"),
        ((features, weights[0], weights[1][:1]), r"text_weight: expected \[G, F, D\] with G = 2, got \[1, 5, 4\]"),
        ((features, weights[0], weights[1].half()), r"text_weight: expected torch.float32, got torch.float16"),
        ((features, weights[0].to("meta"), weights[1]), r"features\[0\]: expected a tensor on meta, got cpu"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            call(*arguments)
    with pytest.raises(ValueError, match="kind: expected one of l1, smooth_l1, mse, got 'huber'"):
        call(features, *weights, kind="huber")
