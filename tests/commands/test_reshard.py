"""`reshard` writes to the given checkpoint and to the best one beside it, and never to another run."""

import json
import shutil

import pytest

from llata_fast.__main__ import main
from llata_fast.durable import find_damage, read_manifest, write_manifest


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of a run with two checkpoints, the first of them the best; resharding is faked by writing one file."""

    def reshard(checkpoint, trust):
        (checkpoint_path := tmp_path / checkpoint).joinpath("universal").touch()
        return checkpoint_path / "universal"

    monkeypatch.setattr("llata_fast.training.deepspeed_state.reshard", reshard)
    for step in (1, 2):
        path = tmp_path / "run" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        state = {"best_model_checkpoint": None, "stateful_callbacks": {"best_checkpoint": "checkpoint-1"}}
        (path / "trainer_state.json").write_text(json.dumps(state))
        write_manifest(path)
    return shutil.copytree(tmp_path / "run", tmp_path / "copy")


def test_a_copy_is_resharded_and_not_its_original(copy, tmp_path):
    written = read_manifest(copy / "checkpoint-1")["written"]
    main(["reshard", str(copy / "checkpoint-2")])
    for step in (1, 2):
        checkpoint = copy / f"checkpoint-{step}"
        assert (checkpoint / "universal").exists() and not (
            tmp_path / "run" / f"checkpoint-{step}" / "universal"
        ).exists()
        # the manifest covers what was added, and the time of the best one does not change
        assert "universal" in read_manifest(checkpoint)["files"] and find_damage(checkpoint) is None
    assert read_manifest(copy / "checkpoint-1")["written"] == written
    assert not list((tmp_path / "run").rglob("universal")), "the run that it is a copy of"


def test_a_damaged_checkpoint_gets_no_new_manifest(copy, capsys):
    (copy / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(SystemExit) as exit:
        main(["reshard", str(copy / "checkpoint-2")])
    assert exit.value.code == 2 and "is damaged: trainer_state.json" in capsys.readouterr().err
    assert not (copy / "checkpoint-2" / "universal").exists()
