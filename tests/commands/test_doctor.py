"""`python -m llata_fast doctor`: what is installed and would be used, and DeepSpeed configs with "auto" resolved."""

import json
from pathlib import Path

import pytest
import torch
from tiny import random_backbone

from llata_fast.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def doctor(capsys, backbone, *argv):
    main(["doctor", "--backbone", backbone, *map(str, argv)])
    return capsys.readouterr().out


def test_prints_versions_device_and_attention(tmp_path, capsys):
    output = doctor(capsys, random_backbone(tmp_path), "--num_tokens", 5)
    rows = dict(line.split("  ", 1) for line in output.splitlines())

    assert rows["torch"].strip() == torch.__version__
    for name in ("deepspeed", "bitsandbytes", "matplotlib", "devices", "precision auto", "Triton kernels"):
        assert rows[name].strip()
    if not torch.cuda.is_available():
        assert rows["attention, 5 tokens"].strip() == "sdpa (no cuda device)"
        assert "CPU" in rows["devices"]


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_resolves_a_deepspeed_configuration(tmp_path, capsys, stage):
    pytest.importorskip("deepspeed")
    argv = (
        "--deepspeed",
        ROOT / "ds_configs" / f"{stage}.json",
        "--batch_size",
        24,
        "--gradient_accumulation_steps",
        3,
    )
    output = doctor(capsys, random_backbone(tmp_path), *argv)
    resolved = json.loads(output[output.index("{") :])
    assert resolved["train_batch_size"] == 24
    assert resolved["train_micro_batch_size_per_gpu"] == 8
    assert resolved["gradient_accumulation_steps"] == 3
    assert resolved["zero_optimization"]["reduce_bucket_size"] == 48 * 48
    assert '"auto"' not in output


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--deepspeed", "absent.json"], "absent.json: no such file"),
        (["--attn_implementation", "flash_attention_9"], "must be one of auto"),
        (["--batch_size", "7", "--gradient_accumulation_steps", "2"], "error: batch_size 7 is not a multiple"),
        (["--num_tokens", "0"], "--num_tokens must be at least 1"),
    ],
)
def test_bad_options(tmp_path, capsys, argv, words):
    with pytest.raises(SystemExit) as exit:
        doctor(capsys, random_backbone(tmp_path), *argv)
    assert exit.value.code == 2 and words in capsys.readouterr().err


def test_contradictory_configuration(tmp_path, capsys):
    pytest.importorskip("deepspeed")
    (tmp_path / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 3, "zero_optimization": {}}))
    with pytest.raises(SystemExit) as exit:
        doctor(capsys, random_backbone(tmp_path), "--deepspeed", tmp_path / "ds.json")
    error = capsys.readouterr().err
    assert exit.value.code == 2 and "train_micro_batch_size_per_gpu" in error and error.count("\n") == 1
