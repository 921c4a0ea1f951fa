"""The ops meet torch.library's requirements, and torch.compile and CUDA graphs capture them without a break."""

import pytest
import torch
from llata_fast.kernels import alignment_loss, patch_embed, prototype_attention
from llata_fast.kernels._launch import INTERPRET
from torch.utils.flop_counter import FlopCounterMode

# CPU tensors reach the custom ops only in the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, L, C, P, S, D, A, E, V, F = 2, 12, 3, 4, 4, 16, 2, 8, 5, 6


def parameters(dtype=torch.float32):
    shapes = {"weight": (D, P), "bias": (D,), "k": (V, A, E), "v": (V, A, E), "time": (F, D), "text": (F, D)}
    return {name: torch.randn(s, device=DEVICE, dtype=dtype).requires_grad_() for name, s in shapes.items()}


def all_three(x, weight, bias, k, v, time, text):
    tokens, loc, scale = patch_embed(x, weight, bias, patch_length=P, patch_stride=S)
    tokens = tokens.flatten(0, 2)
    attended = prototype_attention(tokens.unflatten(1, (A, E)), k, v).flatten(1)
    return alignment_loss(tokens, attended, time, text, kind="smooth_l1") + loc.mean() + scale.mean()


def loss_and_grads(fn, x, tensors):
    loss = fn(x, **tensors)
    return [loss, *torch.autograd.grad(loss, list(tensors.values()))]


def backends():
    # inductor needs a compiler, which a CPU machine may lack; its GPU path is tested where there is a GPU
    return ["aot_eager"] + (["inductor"] if DEVICE == "cuda" else [])


@pytest.mark.parametrize("backend", backends())
def test_compiles_without_a_graph_break(backend):
    x, tensors = torch.randn(B, L, C, device=DEVICE), parameters()
    compiled = torch.compile(all_three, fullgraph=True, backend=backend)
    for ours, eager in zip(loss_and_grads(compiled, x, tensors), loss_and_grads(all_three, x, tensors), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype):
    assert INTERPRET or DEVICE == "cuda"
    x, tensors = torch.randn(B, L, C, device=DEVICE), parameters(dtype)
    q = torch.randn(7, A, E, device=DEVICE, dtype=dtype).requires_grad_()
    time, text = (torch.randn(7, D, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(2))
    both = [torch.randn(14, D, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(2)]
    weights = [torch.randn(2, F, D, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(2)]
    one = [torch.randn(1, F, D, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(2)]
    ops = torch.ops.llata_fast
    norms = [torch.randn(D, device=DEVICE).requires_grad_(index < 2) for index in range(4)]
    heads = torch.randn(2 * B, C, 6, device=DEVICE, dtype=dtype).requires_grad_()
    units, target = [torch.rand(B, C, device=DEVICE) + 0.5 for _ in range(2)], torch.randn(B, 6, C, device=DEVICE)
    samples = [
        (ops.twin_norm, (time, *norms, text, 3, 1e-5, 0.0, "layer", torch.float32)),
        (ops.twin_norm, (time, norms[0], None, norms[2], None, None, 7, 1e-5, 1.0, "rms", dtype)),
        (ops.forecast_losses, (heads, *units, target, None, "l1", "mse", 0.5)),
        (ops.forecast_losses, (heads, *units, target, units[1], "mase", None, 0.5)),
        (ops.patch_embed, (x, tensors["weight"], tensors["bias"], None, S, 1e-5)),
        (ops.patch_embed, (x, tensors["weight"], tensors["bias"], x > 0, S, 1e-5)),
        (ops.prototype_attention, (q, tensors["k"], tensors["v"], 0.3)),
        (ops.alignment_loss, ([time], [text], *one, [1.0], "l1", True)),
        (ops.alignment_loss, (both, [], *weights, [1.0, 0.5], "smooth_l1", True)),
    ]
    for op, args in samples:
        torch.library.opcheck(op.default, args)


@pytest.mark.gpu
def test_cuda_graph_and_no_synchronisation():
    x, tensors = torch.randn(B, L, C, device=DEVICE), parameters(torch.bfloat16)
    expected = loss_and_grads(all_three, x, tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss_and_grads(all_three, x, tensors)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = loss_and_grads(all_three, x, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for tensor in captured:
        tensor.detach().fill_(float("nan"))
    graph.replay()
    for ours, eager in zip(captured, expected, strict=True):
        assert torch.equal(ours, eager)


def test_flops_are_counted():
    """As many as for plain matrix products; attention's backward computes the scores again."""
    x, tensors = torch.randn(B, L, C, device=DEVICE), parameters()
    with FlopCounterMode(display=False) as counter:
        all_three(x, **tensors).backward()
    counts = {str(op).removeprefix("llata_fast."): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    M = B * C * (L // S)
    assert counts == {
        "patch_embed": 2 * M * D * P,
        "patch_embed_backward": 2 * M * D * P,
        "prototype_attention": 2 * 2 * M * V * D,
        "prototype_attention_backward": 5 * 2 * M * V * D,
        "alignment_loss": 2 * 2 * M * D * F,
        "alignment_loss_backward": 4 * 2 * M * D * F,
    }
