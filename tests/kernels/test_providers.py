"""The table of providers has a row for every op and shape class, and the library computes what it is given there."""

import csv
import dataclasses

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
    providers,
    twin_norm,
)

KEY = "twin_norm", "D <= 256"


def test_every_shape_class_has_a_provider():
    rows = providers.TABLE.values()
    assert {row.provider for row in rows} == {providers.TRITON, providers.LIBRARY}
    assert all(row.reason and row.basis in ("estimated", "measured") for row in rows)
    assert all((row.op, row.shape_class, "any") in providers.TABLE for row in rows)
    provided = {(row.op, row.shape_class) for row in rows}
    without = set()
    for kernel, shape_class, _ in configs.TABLE:
        op = next((op for op in sorted({row.op for row in rows}, key=len, reverse=True) if kernel.startswith(op)), None)
        if op is None:
            without.add(kernel)
        elif shape_class != "any":
            # configs may distinguish more classes
            assert (op, shape_class.split(", ")[0]) in provided, (kernel, shape_class)
    # every op uses it
    assert without == {"reduce_sum_splits"}


def test_no_row_is_written_twice():
    with providers.PATH.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(providers.TABLE)


def test_own_row_wins_over_the_one_for_any_target(monkeypatch):
    row = providers.TABLE[(*KEY, "any")]
    monkeypatch.setitem(providers.TABLE, (*KEY, "any"), dataclasses.replace(row, provider=providers.TRITON))
    own = dataclasses.replace(row, target="sm_90", provider=providers.LIBRARY)
    monkeypatch.setitem(providers.TABLE, (*KEY, "sm_90"), own)
    for target, library in (("sm_90", True), ("sm_120", False)):
        monkeypatch.setattr(providers, "target_name", lambda device, target=target: target)
        assert providers.by_library(*KEY, torch.empty(1)) is library
    with pytest.raises(KeyError, match="no such op"):
        providers.by_library("no such op", "any", torch.empty(1))


def test_the_library_computes_the_ops_assigned_to_it(monkeypatch):
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
