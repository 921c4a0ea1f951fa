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
)
from hypothesis import given, settings
from hypothesis import strategies as st
from llata_fast.kernels import _launch, configs, prototype_attention, prototype_attention_ref

module = sys.modules[prototype_attention.__module__]

# M, V, A, E
CASES = {
    "one of each": (1, 1, 1, 1),
    "several blocks, none full": (37, 41, 2, 24),
    "full blocks": (32, 32, 1, 16),
    "head of 48": (5, 33, 2, 48),
    "head of 80": (18, 7, 1, 80),
    "head of 96": (3, 17, 1, 96),
    "head of 256": (17, 3, 1, 256),
    "no queries": (0, 5, 2, 8),
}


def make_inputs(M, V, A, E, dtype, layout="contiguous", device="cpu"):
    return [in_layout(torch.randn(n, A, E, device=device).to(dtype), layout) for n in (M, V, V)]


def check(q, k, v, scale=None, dout=None, steps=0):
    dout = torch.randn(q.shape, device=q.device) if dout is None else dout

    def run(fn, *tensors):
        q, k, v = (t.detach().requires_grad_() for t in tensors)
        out = fn(q, k, v, scale=scale)
        return {"out": out.detach(), **grads_of(out, dout, {"q": q, "k": k, "v": v})}

    compare(run, q, k, v, op=prototype_attention, op_ref=prototype_attention_ref, steps=steps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_matches_reference(case, dtype, device):
    check(*make_inputs(*case, dtype, device=device))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_layout_and_scale(data, device):
    draw = data.draw
    M, V = draw(st.integers(0, 20)), draw(st.integers(1, 20))
    A, E = draw(st.integers(1, 2)), draw(st.integers(1, 20))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(DTYPES))
    q, k, v = (in_layout(t, draw(st.sampled_from(LAYOUTS))) for t in make_inputs(M, V, A, E, dtype, device=device))
    dout = in_layout(torch.randn(M, A, E, device=device), draw(st.sampled_from(LAYOUTS)))
    check(q, k, v, scale=draw(st.sampled_from((None, 0.05, 1.0))), dout=dout, steps=1)


@pytest.mark.parametrize("config", gpu_configs("prototype_attention"), ids=config_id)
def test_every_config(config, monkeypatch, device):
    use_config(monkeypatch, config, device)
    # with 0 multiprocessors every number of queries counts as many
    monkeypatch.setattr(module, "num_multiprocessors", lambda device: 0 if "many" in config.shape_class else 9)
    head_dim = {"E <= 64": 40, "E <= 128": 96, "E <= 256": 160}[config.shape_class.split(", ")[0]]
    check(*make_inputs(19, 21, 1, head_dim, config_dtype(config), device=device))


def test_scores_far_from_zero(device):
    """All scores are near -300 or near +300; padded keys beyond V have score 0, which must not count."""
    for sign in (-1, 1):
        q = torch.full((18, 1, 16), 5.0, device=device) + torch.randn(18, 1, 16, device=device) * 0.1
        k = sign * 15 + torch.randn(19, 1, 16, device=device) * 0.1
        check(q, k, torch.randn(19, 1, 16, device=device))


def test_expanded_gradient_with_strides_of_0(device):
    """The gradient of a sum is one number, expanded with strides of 0."""
    q, k, v = (t.requires_grad_() for t in make_inputs(18, 5, 2, 16, torch.float32, device=device))
    prototype_attention(q, k, v).sum().backward()
    ours = [t.grad for t in (q, k, v)]
    for t in (q, k, v):
        t.grad = None
    prototype_attention_ref(q, k, v).sum().backward()
    for grad, t in zip(ours, (q, k, v), strict=True):
        torch.testing.assert_close(grad, t.grad)


def test_bfloat16(device):
    # the interpreter truncates bf16 instead of rounding: one step of 2^-7
    q, k, v = make_inputs(18, 21, 2, 16, torch.bfloat16, device=device)
    exact = prototype_attention_ref(q.double(), k.double(), v.double())
    torch.testing.assert_close(prototype_attention(q, k, v).double(), exact, rtol=2**-7, atol=2**-7)


def test_two_runs_are_bit_equal(device):
    q, k, v = (t.requires_grad_() for t in make_inputs(70, 20, 2, 16, torch.float32, device=device))
    dout = torch.randn_like(q)
    first, second = (torch.autograd.grad(prototype_attention(q, k, v), (q, k, v), dout) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_offsets_beyond_two_to_the_31(tmp_path):
    """Rows of q are so far apart that their offsets do not fit in 32 bits; a sparse file provides the memory."""
    distance, rows = 2**30 + 8, 4
    path = tmp_path / "holes"
    with path.open("wb") as file:
        file.truncate(2 * (distance * rows))
    memory = torch.from_file(str(path), shared=True, size=distance * rows, dtype=torch.float16)
    q = memory.as_strided((rows, 1, 8), (distance, 8, 1))
    q.copy_(torch.randn(rows, 1, 8))
    k = torch.randn(5, 1, 8).half()
    torch.testing.assert_close(prototype_attention(q, k, k), prototype_attention_ref(q, k, k), rtol=0, atol=2e-3)


# M, V, A, E
LARGE = {
    "ETT": (256 * 7, 500, 12, 64),
    "Weather": (64 * 21, 500, 12, 64),
    "ECL": (32 * 321, 500, 12, 64),
    "Traffic": (16 * 862, 500, 12, 64),
    "large backbone": (32 * 321, 1000, 32, 128),
    "heads of 48": (256 * 7, 500, 12, 48),
    "heads of 80": (256 * 7, 500, 8, 80),
    "heads of 96": (256 * 7, 500, 8, 96),
    "heads of 256": (256 * 7, 500, 4, 256),
}


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_shapes_that_matter(case, device):
    # sums over thousands of rows: a rounding step is large compared with the absolute tolerance
    check(*make_inputs(*case, torch.bfloat16, device=device), steps=2)


@pytest.mark.gpu
def test_queries_beyond_two_to_the_31(device):
    rows = 100
    q, k, v = (t.requires_grad_() for t in make_inputs(2_800_000, 500, 12, 64, torch.bfloat16, device=device))
    assert q.numel() > 2**31
    out = prototype_attention(q, k, v)
    # only the last rows count, so all queries must give the gradients of these rows alone
    dout = torch.zeros_like(out)
    dout[-rows:] = torch.randn_like(dout[-rows:])
    dq, *others = torch.autograd.grad(out, (q, k, v), dout)
    doubles = [t.detach().double().requires_grad_() for t in (q[-rows:], k, v)]
    exact = prototype_attention_ref(*doubles)
    grads = torch.autograd.grad(exact, doubles, dout[-rows:].double())
    assert not dq[:-rows].any()
    for ours, theirs in zip((out[-rows:], dq[-rows:], *others), (exact, *grads), strict=True):
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_few_prototypes_fill_a_gpu(target, monkeypatch):
    """12 heads times the blocks of 500 prototypes are fewer programs than an H200's 132 multiprocessors."""
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: grids.append(grid)

    monkeypatch.setattr(module, "_bwd_dq_kernel", Recorder())
    monkeypatch.setattr(module, "_bwd_dkv_kernel", Recorder())
    monkeypatch.setattr(module, "split_outputs", lambda splits, *outputs: (outputs, 0, lambda: None))
    monkeypatch.setattr(configs, "target_name", lambda device: target)
    monkeypatch.setattr(_launch, "num_multiprocessors", lambda device: 132)
    q, k = torch.empty(10272, 12, 64, dtype=torch.bfloat16), torch.empty(500, 12, 64, dtype=torch.bfloat16)
    module.prototype_attention_bwd(q, q, k, k, q, torch.empty(12, 10272), 0.125)
    blocks, heads, splits = grids[-1]
    assert blocks * heads < 132 < blocks * heads * splits


def test_wrong_inputs():
    q, k, v = make_inputs(3, 5, 2, 8, torch.float32)
    wrong = [
        ((q[0], k, v), r"q: expected \[M, A, E\], got \[2, 8\]"),
        ((q[..., :0], k, v), r"q: expected \[M, A, E\] with E >= 1"),
        ((q, k[:, :1], v), r"k: expected \[V, A, E\] with A = 2, got \[5, 1, 8\]"),
        ((q, k[..., :4], v), r"k: expected \[V, A, E\] with E = 8, got \[5, 2, 4\]"),
        ((q, k[:0], v[:0]), r"k: expected \[V, A, E\] with V >= 1, got \[0, 2, 8\]"),
        ((q, k, v[:4]), r"v: expected \[V, A, E\] with V = 5, got \[4, 2, 8\]"),
        ((q.double(), k, v), r"q: expected torch.float32 or .*, got torch.float64"),
        ((q, k.half(), v), r"k: expected torch.float32, got torch.float16"),
        ((q, k, v.to("meta")), r"v: expected a tensor on cpu, got meta"),
    ]
    for tensors, message in wrong:
        with pytest.raises(ValueError, match=message):
            prototype_attention(*tensors)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="scale: expected a positive number or None"):
            prototype_attention(q, k, v, scale=scale)
