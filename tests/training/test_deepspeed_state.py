"""Interrupted conversions of DeepSpeed checkpoints; test_distributed.py tests conversions of real ones."""

import pytest

from llata_fast.training import deepspeed_state


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    """A half-converted checkpoint would be taken for a resharded one."""
    source = tmp_path / "global_step1"
    source.mkdir()
    (source / "rank_0_optim_states.pt").touch()
    (tmp_path / "latest").write_text(source.name)

    def convert(source, target):
        target.mkdir()
        (tmp_path / "latest_universal").write_text(target.name)

    def interrupted(target):
        raise KeyboardInterrupt

    monkeypatch.setattr(deepspeed_state, "_convert", convert)
    monkeypatch.setattr(deepspeed_state, "_settle_for_every_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        deepspeed_state.reshard(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"global_step1", "latest"}
