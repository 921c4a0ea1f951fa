"""The whole model on a CUDA device: it compiles, replays from CUDA graphs, and no step waits for the device."""

import pytest
import torch
from tiny import BACKBONES, random_backbone, tiny_model

from llata_fast.backbone.twin import store_frozen

pytestmark = pytest.mark.gpu

PATCHES = {"patch_length": 4, "patch_stride": 3}


def window(batch=4, channels=3):
    """past [B, 12, C] and future [B, 5, C] on the device."""
    series = 50 + torch.randn(batch, 17, channels).cumsum(1)
    return series.to("cuda").split((12, 5), 1)


@pytest.fixture
def model(tmp_path):
    """`model(family, **fields)` is on the device and in training mode, with frozen projections in bf16."""

    def build(family="gpt2", **fields):
        model = tiny_model(random_backbone(tmp_path, family), **fields).to("cuda")
        store_frozen(model.backbone, torch.bfloat16)
        return model

    return build


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_cuda_graphs_equal_eager(model, family, tokens):
    model = model(family, num_layers=1, **tokens)
    torch.compiler.reset()
    loss = lambda past, future: model(past, future).loss
    forecast = lambda past: model(past).prediction_outputs
    compiled_loss, compiled_forecast = (
        torch.compile(fn, fullgraph=True, mode="reduce-overhead") for fn in (loss, forecast)
    )
    # the first call compiles, the second one records, later ones replay
    for _ in range(4):
        past, future = window()
        results = []
        for fn in (compiled_loss, loss):
            model.train().zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast("cuda", torch.bfloat16):
                value = fn(past, future)
            value.backward()
            results.append((value.detach().clone(), gradients(model)))
        (ours, our_gradients), (eager, eager_gradients) = results
        torch.testing.assert_close(ours, eager, rtol=2e-2, atol=0)
        for name, gradient in eager_gradients.items():
            assert (our_gradients[name] - gradient).norm() <= 0.1 * gradient.norm() + 1e-4, name
        model.eval()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            torch.compiler.cudagraph_mark_step_begin()
            ours, eager = compiled_forecast(past).clone(), forecast(past)
        # in units of the series' own deviations
        assert ((ours - eager).abs() / past.std(1, keepdim=True)).max() < 0.1


@pytest.mark.parametrize("family", [name for name in BACKBONES if name != "gemma2"])
def test_a_step_never_waits_for_the_device(model, family):
    model, (past, future) = model(family), window()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(past, future, past_observed_mask=past > 49).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    # the first step compiles the kernels
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
