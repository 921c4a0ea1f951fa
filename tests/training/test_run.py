"""Where a run goes, what it says of its model before it trains, and what the model starts from."""

import pytest
from tiny import random_backbone, tiny_model, write_series
from training.distributed_cases import train

from llata_fast.errors import InputError
from llata_fast.training.arguments import parse_arguments
from llata_fast.training.presets import preset_for
from llata_fast.training.run import parameter_counts, parameter_table, settle_output_dir


def settled(*argv):
    """(output_dir, resume_from_checkpoint) as a run of the default series settles them."""
    model, data, training = parse_arguments(list(argv))
    settle_output_dir(training, data, model)
    return training.output_dir, training.resume_from_checkpoint


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working directory where two runs of the default series were begun."""
    monkeypatch.chdir(tmp_path)
    for name in ("Metro-336-96", "Metro-336-96-2"):
        (tmp_path / "runs" / name / "checkpoint-5").mkdir(parents=True)
        (tmp_path / "runs" / name / "checkpoint-5" / "trainer_state.json").touch()


def test_a_run_goes_to_a_folder_of_its_own(runs, tmp_path):
    assert settled() == ("runs/Metro-336-96-3", None)
    # trained, and then interrupted
    (tmp_path / "runs" / "Metro-336-96-3").mkdir()
    (tmp_path / "runs" / "Metro-336-96-3" / "model.safetensors").touch()
    assert settled() == ("runs/Metro-336-96-4", None)
    with pytest.raises(InputError, match="Metro-336-96-3 holds a run already"):
        settled("--output_dir", "runs/Metro-336-96-3")


def test_a_resumed_run_goes_on_where_it_was(runs):
    last = "runs/Metro-336-96-2"
    assert settled("--resume_from_checkpoint", "last") == (last, f"{last}/checkpoint-5")
    first = "runs/Metro-336-96"
    assert settled("--resume_from_checkpoint", f"{first}/checkpoint-5") == (first, f"{first}/checkpoint-5")
    elsewhere = settled("--resume_from_checkpoint", f"{first}/checkpoint-5", "--output_dir", "elsewhere")
    assert elsewhere == ("elsewhere", f"{first}/checkpoint-5")
    with pytest.raises(InputError, match="no checkpoint at runs/absent"):
        settled("--resume_from_checkpoint", "runs/absent")


def test_a_checkpoint_whose_writing_was_cut_short_is_passed_over(runs, tmp_path):
    run = tmp_path / "runs" / "Metro-336-96-2"
    (run / "checkpoint-10").mkdir()
    assert settled("--resume_from_checkpoint", "last")[1] == "runs/Metro-336-96-2/checkpoint-5"
    with pytest.raises(InputError, match="cut short"):
        settled("--resume_from_checkpoint", str(run / "checkpoint-10"))
    (run / "checkpoint-5" / "trainer_state.json").unlink()
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        settled("--resume_from_checkpoint", "last")


def test_an_overwritten_run_leaves_nothing(tmp_path, plain_ops):
    """What it has left would be the checkpoint that this run resumes from."""
    settings = {"backbone": random_backbone(tmp_path), "num_layers": 1, "num_prototypes": 9, "intermediate_size": 20}
    settings |= {"dataset": write_series(tmp_path / "series.csv"), "context_length": 12, "prediction_length": 6}
    settings |= {"batch_size": 8, "max_steps": 1, "use_cpu": True, "precision": "fp32", "report_to": "none"}
    settings |= {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1, "output_dir": tmp_path / "run"}

    def checkpoints(**more):
        train([f"--{name}={value}" for name, value in (settings | more).items()])
        return [path.name for path in (tmp_path / "run").glob("checkpoint-*")]

    assert checkpoints() == ["checkpoint-1"]
    assert checkpoints(overwrite_output_dir=True, save_strategy="no") == []


def test_parameters_are_counted_by_part(tmp_path):
    model = tiny_model(random_backbone(tmp_path))
    counts = parameter_counts(model)
    assert counts["trained"] + counts["frozen"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["alignment trained"] == 3 * 2 * 48 * 48 and "alignment frozen" not in counts
    rows = {row.split()[0]: row.split()[1:] for row in parameter_table(counts).splitlines()}
    assert rows["alignment"] == [f"{counts['alignment trained']:,}", "0"]
    assert rows["backbone"] == [f"{counts['backbone trained']:,}", f"{counts['backbone frozen']:,}"]
    assert rows["in"][1:] == [f"{counts['trained']:,}", f"{counts['frozen']:,}"]


def test_chosen_columns_have_skips_of_their_own():
    assert preset_for("ETTh1", {"columns"})["skip_per_channel"]
