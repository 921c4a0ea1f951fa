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
from llata_fast.kernels import twin_norm, twin_norm_ref

module = sys.modules[twin_norm.__module__]

# M, temporal rows, D
CASES = {
    "ones": (1, 1, 1),
    "half of the rows": (20, 10, 24),
    "all rows": (7, 7, 19),
    "none": (5, 0, 33),
    "many rows": (70, 31, 8),
    "no rows": (0, 0, 3),
}
VARIANTS = {
    "layer": {"kind": "layer", "eps": 1e-5},
    "rms": {"kind": "rms", "eps": 1e-6},
    "rms, offset": {"kind": "rms", "eps": 1e-6, "offset": 1.0},
}


def make_inputs(M, D, dtype, kind, update_dtype=None, weight_dtype=torch.float32, device="cpu"):
    draw = lambda *shape: torch.randn(shape, device=device)
    weights = [(0.5 + draw(D)).to(weight_dtype), draw(D).to(weight_dtype)]
    biases = [draw(D).to(weight_dtype) if kind == "layer" else None for _ in range(2)]
    update = None if update_dtype is None else draw(M, D).to(update_dtype)
    # a level that the norm must remove
    return (3 + 2 * draw(M, D)).to(dtype), weights[0], biases[0], weights[1], biases[1], update


def check(x, time_weight, time_bias, text_weight, text_bias, update, num_time_rows, out_dtype=None, steps=0, **options):
    M, D = x.shape
    dy, dsum = torch.randn(M, D, device=x.device), torch.randn(M, D, device=x.device)

    def run(fn, change):
        trained = {"x": x, "time_weight": time_weight, "time_bias": time_bias, "update": update}
        trained = {name: change(t.detach()).requires_grad_() for name, t in trained.items() if t is not None}
        frozen = [None if t is None else change(t) for t in (text_weight, text_bias)]
        y, total = fn(
            trained["x"], trained["time_weight"], trained.get("time_bias"), *frozen, update=trained.get("update"),
            num_time_rows=num_time_rows, out_dtype=out_dtype, **options,
        )  # fmt: skip
        result = {"y": y.detach(), "sum": total.detach()}
        both = (y * dy.to(y.dtype)).sum(dtype=torch.float64) + (total * dsum.to(total.dtype)).sum(dtype=torch.float64)
        return result | grads_of(both, torch.ones((), device=x.device), trained)

    out = run(twin_norm, lambda t: t)
    eager = run(twin_norm_ref, lambda t: t.contiguous())
    exact = run(twin_norm_ref, lambda t: t.double())
    for name in out:
        assert_close_to_ref(name, out[name], eager[name], exact[name], steps=steps)


@pytest.mark.parametrize("with_update", [False, True], ids=["", "update"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, dtype, variant, with_update, device):
    M, rows, D = case
    inputs = make_inputs(M, D, dtype, variant["kind"], dtype if with_update else None, device=device)
    check(*inputs, num_time_rows=rows, **variant, steps=1)


@settings(max_examples=EXAMPLES // 4, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_layout_and_dtypes(data, device):
    draw = data.draw
    M, D = draw(st.integers(0, 20)), draw(st.integers(1, 40))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    variant = VARIANTS[draw(st.sampled_from(list(VARIANTS)))]
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in range(3)]
    update = draw(st.sampled_from([None, *DTYPES]))
    inputs = make_inputs(M, D, dtypes[0], variant["kind"], update, dtypes[1], device)
    inputs = [t if t is None else in_layout(t, draw(st.sampled_from(LAYOUTS))) for t in inputs]
    check(*inputs, num_time_rows=draw(st.integers(0, M)), out_dtype=dtypes[2], **variant, steps=2)


@pytest.mark.parametrize("config", gpu_configs("twin_norm"), ids=config_id)
def test_every_config(config, monkeypatch, device):
    use_config(monkeypatch, config, device)
    width = {"D <= 256": 200, "D <= 1024": 700, "D <= 4096": 1100}.get(config.shape_class, 4100)
    check(*make_inputs(5, width, torch.float16, "layer", torch.float16, device=device), 3, **VARIANTS["layer"], steps=1)


@pytest.mark.parametrize("used", ["y", "sum"])
def test_one_output_is_enough(used, device):
    x, *weights, update = make_inputs(6, 9, torch.float32, "layer", torch.float32, device=device)
    x, update = x.requires_grad_(), update.requires_grad_()
    options = VARIANTS["layer"] | {"num_time_rows": 3, "update": update}
    grads = []
    for fn in (twin_norm, twin_norm_ref):
        output = dict(zip(("y", "sum"), fn(x, *weights, **options), strict=True))[used]
        grads.append(torch.autograd.grad(output.square().sum(), (x, update)))
    torch.testing.assert_close(*grads)


def test_two_runs_are_bit_equal(device):
    x, weight, bias, *others, _ = make_inputs(90, 12, torch.float32, "layer", device=device)
    trained = [t.requires_grad_() for t in (x, weight, bias)]
    runs = []
    for _ in range(2):
        y, _ = twin_norm(*trained, *others, num_time_rows=50, **VARIANTS["layer"])
        runs.append(torch.autograd.grad(y.square().sum(), trained))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# M, D
LARGE = {"ETT": (2 * 256 * 7, 768), "ECL": (2 * 32 * 321, 768), "large backbone": (2 * 32 * 321, 4096)}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_shapes_that_matter(case, variant, device):
    M, D = case
    inputs = make_inputs(M, D, torch.float32, variant["kind"], torch.bfloat16, device=device)
    # sums over thousands of rows: a rounding step is large compared with the absolute tolerance
    check(*inputs, num_time_rows=M // 2, out_dtype=torch.bfloat16, **variant, steps=2)


def test_wrong_inputs():
    x, *weights, _ = make_inputs(6, 4, torch.float32, "layer")
    call = lambda x, *weights, rows=3, kind="layer", update=None: twin_norm(
        x, *weights, num_time_rows=rows, eps=1e-5, kind=kind, update=update
    )
    wrong = [
        ((x[0], *weights), {}, r"x: expected \[M, D\], got \[4\]"),
        ((x, *weights), {"rows": 7}, r"num_time_rows: expected 0 to 6, got 7"),
        ((x, *weights), {"kind": "batch"}, r"kind: expected one of layer, rms, got 'batch'"),
        ((x, *weights), {"kind": "rms"}, r"two biases or none, and none of an rms norm"),
        ((x, *weights[:3], None), {}, r"two biases or none"),
        ((x, weights[0][:3], *weights[1:]), {}, r"time_weight: expected \[D\] with D = 4, got \[3\]"),
        ((x, *weights[:2], weights[2].half(), weights[3]), {}, r"text_weight: expected torch.float32, got .*16"),
        ((x, *weights), {"update": x[:5]}, r"update: expected \[M, D\] with M = 6, got \[5, 4\]"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            call(*arguments, **options)
