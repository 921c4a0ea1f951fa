"""`--report_to wandb`: the Trainer's own logger receives every loss term, even offline."""

import time

import pytest
from tiny import random_backbone, write_series

from llata_fast.experiment import train

wandb = pytest.importorskip("wandb")
pytestmark = pytest.mark.usefixtures("plain_ops")


def test_every_loss_term_arrives(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    sizes = {
        "num_layers": 1,
        "context_length": 12,
        "prediction_length": 5,
        "num_prototypes": 9,
        "intermediate_size": 20,
    }
    series, backbone = write_series(tmp_path / "series.csv"), random_backbone(tmp_path)
    train(
        str(series),
        backbone=backbone,
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        logging_steps=1,
        report_to="wandb",
        precision="fp32",
        disable_tqdm=True,
        **sizes,
    )
    wandb.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    names = {f"train/{name}" for name in ("loss", "task_loss", "consistency_loss", "alignment_loss")} | {"eval/mse"}
    # a separate process writes it, and continues after the end
    latest = time.monotonic() + 60
    while time.monotonic() < latest and not all(name.encode() in file.read_bytes() for name in names):
        time.sleep(0.2)
    assert {name for name in names if name.encode() not in file.read_bytes()} == set()
