"""A training step and a forecast stay within their limits of kernel launches, counted on fake tensors."""

import importlib
import json
from pathlib import Path

import pytest
import torch

BOUNDS = {"training_step": 260, "forecast": 100}


@pytest.fixture(scope="module")
def counted(launch, tmp_path_factory):
    """Totals by phase, and launches by (phase, part, operation)."""
    folder = tmp_path_factory.mktemp("launches")
    # a separate process: the interpreter is another target
    output = launch("python", "bench/launches.py", "--write", folder)
    rows = [line.split(",") for line in (folder / "launches.csv").read_text().splitlines()[1:]]
    return json.loads(output.splitlines()[-1]), {tuple(row[:3]): int(row[3]) for row in rows}


def test_bound(counted):
    totals, _ = counted
    over = {name: totals[name] for name, bound in BOUNDS.items() if totals[name] > bound}
    assert not over, f"launches beyond the bound: {over}; python bench/launches.py says where"


def test_every_launch_is_counted(counted):
    totals, rows = counted
    for phase in ("forward", "backward", "optimizer", "forecast"):
        assert totals[phase] == sum(number for key, number in rows.items() if key[0] == phase) > 0
    # our kernels under their own names; attention and activation of every block once per pass
    kernels = {operation for _, _, operation in rows}
    assert {"patch_embed_fwd", "patch_embed_bwd", "prototype_attention_bwd_dkv", "alignment_loss_fwd"} <= kernels
    assert rows["forward", "activation", "gelu"] == rows["backward", "activation", "gelu_backward"] == 6
    assert rows["forward", "attention", "_scaled_dot_product_flash_attention_for_cpu"] == 6


@pytest.fixture
def launches(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    return importlib.import_module("launches")


def counts_of(launches, call):
    counter = launches.CountLaunches()
    counter.count("forward", call)
    return {key[2]: number for key, number in counter.counts.items() if number}


def test_views_launch_nothing_and_writes_do(launches):
    x = torch.zeros(4, 4)
    assert not counts_of(launches, lambda: x.t()[1:].reshape(-1, 2, 2).unsqueeze(0))
    assert counts_of(launches, lambda: x.t().reshape(16)) == {"clone": 1}
    assert counts_of(launches, lambda: x.add_(1)) == {"add_": 1}
    assert counts_of(launches, lambda: torch.empty(3) + x[:, :3]) == {"add": 1}


def test_multi_tensor_kernels_are_split_by_tensors_and_blocks(launches):
    count = launches.multi_tensor_launches
    small, large = torch.zeros(8), torch.empty(320 * 65536)
    assert count([[small] * 110]) == 1 and count([[small] * 111]) == 2
    assert count([[small] * 36] * 4) == 1 and count([[small] * 37] * 4) == 2
    assert count([[large]]) == 1 and count([[large, small]]) == 2
