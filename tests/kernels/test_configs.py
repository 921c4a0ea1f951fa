"""The table of launch configs has a row for every target, and a target's own row wins over the one for any."""

import csv
import dataclasses

import pytest
import torch
from llata_fast.kernels import configs

KEY = "twin_norm_fwd", "D <= 256"


def test_every_class_has_a_config_for_any_target():
    classes = {(kernel, shape_class) for kernel, shape_class, _ in configs.TABLE}
    for kernel, shape_class in classes:
        assert (kernel, shape_class, "any") in configs.TABLE
        assert (kernel, shape_class, "interpreter") in configs.TABLE
    assert all(config.reason and config.num_warps in (1, 2, 4, 8, 16) for config in configs.TABLE.values())


def test_no_row_is_written_twice():
    with configs.PATH.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(configs.TABLE)


def test_own_row_wins_over_the_one_for_any_target(monkeypatch):
    own = dataclasses.replace(configs.TABLE[(*KEY, "any")], target="sm_90", num_warps=16)
    monkeypatch.setitem(configs.TABLE, (*KEY, "sm_90"), own)
    for target, config in (("sm_90", own), ("sm_120", configs.TABLE[(*KEY, "any")])):
        monkeypatch.setattr(configs, "target_name", lambda device, target=target: target)
        assert configs.config_for(*KEY, torch.empty(1)) is config
    with pytest.raises(KeyError, match="no such kernel"):
        configs.config_for("no such kernel", "any", torch.empty(1))


def test_launch_options_come_from_the_row():
    config = configs.Config("k", "any", "any", {"BLOCK": 64}, num_warps=2, num_stages=3, waves=1, reason="")
    assert config.launch_options() == {"BLOCK": 64, "num_warps": 2, "num_stages": 3, "enable_fp_fusion": True}
