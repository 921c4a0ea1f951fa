"""Which tensors use Triton, in which precision, and split into how many parts."""

import subprocess
import sys
import types

import pytest
import torch
from llata_fast.kernels import _launch, prototype_attention, prototype_attention_ref

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
    # as the Trainer's --tf32 sets it; after this the legacy getter raises
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
    # one more part would begin another wave
    assert splits(programs=wanted // 2, limit=10) == 2
    assert splits(programs=wanted // 2 + 1, limit=10) == 1
    assert splits(programs=wanted, limit=10) == 1
    # nothing to split
    assert splits(programs=0, limit=0) == 1


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
