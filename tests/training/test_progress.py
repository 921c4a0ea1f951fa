"""Progress of a training: one readable line, every record in the log, no step twice after a resume."""

import json
from types import SimpleNamespace

import pytest

from llata_fast.run_folder import LOG, RunFolder
from llata_fast.training.progress import ProgressLine, TrainingLog, training_line

LOSSES = {"loss": 0.51234, "task_loss": 0.5, "consistency_loss": 0.01, "alignment_loss": 0.2}


def state(step, **fields):
    return SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True, best_metric=None, **fields)


def test_line_of_losses():
    record = {"step": 20, "max_steps": 1200, "windows_per_s": 1234.5, "learning_rate": 1e-3} | LOSSES
    line = training_line(record, seconds_left=3671)
    assert line == (
        "step 20 of 1,200: loss 0.5123 (task 0.5, consistency 0.01, alignment 0.2), 1,234 windows/s, 1 h 01 min left"
    )
    assert training_line({"step": 1, "max_steps": 2, "loss": 1.0, "task_loss": 1.0}, None) == "step 1 of 2: loss 1"
    record = {"step": 1, "max_steps": 2, "loss": 1.5, "task_loss": 1.0, "quantile_loss": 0.5}
    assert training_line(record, None) == "step 1 of 2: loss 1.5 (task 1, quantile 0.5)"


def test_line_of_a_validation():
    record = {"step": 20, "max_steps": 40, "eval_mse": 0.34012, "eval_mae": 0.4, "best": 0.33}
    assert training_line(record, 59.6) == "step 20 of 40: validation MSE 0.3401, MAE 0.4000, best 0.3300"
    assert training_line({"step": 40, "max_steps": 40, "train_runtime": 3.0}, None) is None


@pytest.mark.parametrize("seconds, text", [(4, "4 s"), (59.7, "1 min 00 s"), (151, "2 min 31 s"), (7200, "2 h 00 min")])
def test_time_left_is_readable(seconds, text):
    assert training_line({"step": 1, "max_steps": 2, "loss": 1.0}, seconds) == f"step 1 of 2: loss 1, {text} left"


def test_lines_are_logged(caplog, capsys):
    caplog.set_level("INFO", "llata_fast")
    callback = ProgressLine(bar=False)
    callback.on_train_begin(None, state(0), None)
    callback.on_log(None, state(50), None, logs=LOSSES)
    (line,) = caplog.messages
    assert line.startswith("step 50 of 100: loss 0.5123") and line.endswith("left") and "{" not in line
    assert capsys.readouterr().out == ""


def test_log_contains_every_record_once_after_a_resume(tmp_path):
    args = SimpleNamespace(output_dir=str(tmp_path))
    log = TrainingLog()
    for first, last in ((0, 6), (3, 8)):
        # killed at 6 and resumed from the checkpoint of step 3
        log.on_train_begin(args, state(first), None)
        for step in range(first + 1, last + 1):
            log.on_log(args, state(step), None, logs={"loss": step / 10, "grad_norm": float("nan")})
        with (tmp_path / LOG).open("a") as file:
            file.write('{"step": 7, "lo')
    records = RunFolder(tmp_path).read_log()
    assert [record["step"] for record in records] == list(range(1, 9))
    assert all(record["grad_norm"] is None for record in records)


def test_rank_1_writes_nothing(tmp_path):
    other = state(1)
    other.is_world_process_zero = False
    TrainingLog().on_log(SimpleNamespace(output_dir=str(tmp_path)), other, None, logs={"loss": 1.0})
    assert not (tmp_path / LOG).exists()


def test_log_has_one_json_object_per_line(tmp_path):
    RunFolder(tmp_path).append_log({"step": 1, "loss": float("inf")})
    assert json.loads((tmp_path / LOG).read_text()) == {"step": 1, "loss": None}
