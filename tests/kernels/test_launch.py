"""Which tensors take Triton, in which precision, with which config."""

import subprocess
import sys
import types

import pytest
import torch
from check import use_provider
from llata_fast.kernels import (
    _launch,
    alignment_loss,
    configs,
    deep_alignment_loss,
    forecast_losses,
    prototype_attention,
    prototype_attention_ref,
    providers,
    twin_norm,
)

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from llata_fast.kernels import alignment_loss, patch_embed, prototype_attention
weight = torch.randn(4, 8, requires_grad=True)
tokens, _, _ = patch_embed(torch.randn(2, 8, 3), weight, torch.zeros(4), patch_length=8, patch_stride=8)
q = tokens.view(6, 2, 2)
out = prototype_attention(q, q, q).flatten(1)
alignment_loss(out, out * 2, torch.eye(4), torch.eye(4), kind="l1").backward()
assert weight.grad.isfinite().all() and weight.grad.any()
"""


def test_without_triton():
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True)


def test_switched_off(monkeypatch):
    q = torch.randn(3, 2, 8)
    monkeypatch.setattr(_launch, "ENABLED", False)
    assert not _launch.use_triton(q)
    assert torch.equal(prototype_attention(q, q, q), prototype_attention_ref(q, q, q))


@pytest.fixture
def restore_precision():
    yield
    for holder in (torch.backends, torch.backends.cuda.matmul):
        if hasattr(holder, "fp32_precision"):
            holder.fp32_precision = "none"
    if not hasattr(torch.backends, "fp32_precision"):
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
def test_precision_follows_torch(restore_precision):
    precision = lambda: _launch.dot_options(torch.float32)["INPUT_PRECISION"]
    assert precision() == "ieee"
    # as the Trainer's --tf32 sets it: the legacy getter raises from here on
    torch.backends.fp32_precision = "tf32"
    assert precision() == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert precision() == "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert precision() == "tf32"


def test_legacy_precision_follows_torch(monkeypatch):
    for allowed, precision in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", types.SimpleNamespace(allow_tf32=allowed))
        assert _launch.dot_options(torch.float32)["INPUT_PRECISION"] == precision


def test_no_tf32_on_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.backends.cuda, "matmul", types.SimpleNamespace(allow_tf32=True))
    assert _launch.dot_options(torch.float32)["INPUT_PRECISION"] == "ieee"


def test_splits():
    cpu = torch.device("cpu")
    splits = lambda programs, limit, waves=2: _launch.num_splits(cpu, waves, programs, limit)
    wanted = 2 * _launch.DEFAULT_MULTIPROCESSORS
    assert splits(programs=1, limit=10**6) == wanted
    assert splits(programs=1, limit=3) == 3
    # a part more would begin another wave
    assert splits(programs=wanted // 2, limit=10) == 2
    assert splits(programs=wanted // 2 + 1, limit=10) == 1
    assert splits(programs=wanted, limit=10) == 1
    # nothing to split and nobody to split for
    assert splits(programs=0, limit=0) == 1


def test_every_class_has_a_config_for_any_target():
    classes = {(kernel, shape_class) for kernel, shape_class, _ in configs.TABLE}
    for kernel, shape_class in classes:
        assert (kernel, shape_class, "any") in configs.TABLE
        assert (kernel, shape_class, "interpreter") in configs.TABLE
    assert all(config.reason and config.num_warps in (1, 2, 4, 8, 16) for config in configs.TABLE.values())


def test_every_shape_class_has_a_provider():
    rows = providers.TABLE.values()
    assert {row.provider for row in rows} == {providers.TRITON, providers.LIBRARY}
    assert all(row.reason and row.basis in ("estimated", "measured") for row in rows)
    assert all((row.op, row.shape_class, "any") in providers.TABLE for row in rows)
    provided = {(row.op, row.shape_class) for row in rows}
    for kernel, shape_class, _ in configs.TABLE:
        op = next((op for op in sorted({row.op for row in rows}, key=len, reverse=True) if kernel.startswith(op)), None)
        if op is not None and shape_class != "any":
            # configs may tell more inputs apart
            assert (op, shape_class.split(", ")[0]) in provided, (kernel, shape_class)


def test_the_library_computes_what_the_table_gives_it(monkeypatch):
    q, features, weight = torch.randn(3, 2, 8), [torch.randn(6, 8)], torch.randn(1, 4, 8)
    norm, target, units = torch.ones(8), torch.randn(2, 5, 3), torch.ones(2, 3)
    losses = {"task": "l1", "consistency": "l1"}
    calls = [
        lambda: prototype_attention(q, q, q),
        lambda: deep_alignment_loss(features, weight, weight, depth_weights=[1.0], kind="l1"),
        lambda: alignment_loss(*features * 2, weight[0], weight[0], kind="l1"),
        lambda: twin_norm(*features, norm, norm, norm, norm, num_time_rows=3, eps=1e-5, kind="layer")[0],
        lambda: forecast_losses(torch.ones(4, 3, 5), units, units, target, **losses)[3],
    ]
    for op in ("prototype_attention", "alignment_loss", "twin_norm", "forecast_losses"):
        use_provider(monkeypatch, op, "library")
    by_library = [call() for call in calls]
    monkeypatch.setattr(_launch, "ENABLED", False)
    assert all(torch.equal(ours, call()) for ours, call in zip(by_library, calls, strict=True))


def test_target_names(monkeypatch):
    def named(backend, arch):
        target = types.SimpleNamespace(backend=backend, arch=arch)
        active = types.SimpleNamespace(get_current_target=lambda: target)
        monkeypatch.setattr(_launch.triton.runtime, "driver", types.SimpleNamespace(active=active))
        return _launch.target_name.__wrapped__(torch.device("cpu"))

    monkeypatch.setattr(_launch, "INTERPRET", True)
    assert _launch.target_name.__wrapped__(torch.device("cpu")) == "interpreter"
    monkeypatch.setattr(_launch, "INTERPRET", False)
    assert [named("cuda", arch) for arch in (80, 89, 90, 103)] == ["sm_80", "sm_89", "sm_90", "sm_100"]
    assert named("hip", "gfx942:sramecc+:xnack-") == "gfx942"

    class Drivers:
        @property
        def active(self):
            raise RuntimeError("0 active drivers ([]). There should only be one.")

    # fake tensors, on a machine without a GPU and on one without Triton
    monkeypatch.setattr(_launch.triton.runtime, "driver", Drivers())
    assert _launch.target_name.__wrapped__(torch.device("cpu")) == "any"
    monkeypatch.setattr(_launch, "AVAILABLE", False)
    assert _launch.target_name.__wrapped__(torch.device("cpu")) == "any"
