"""Damages DeepSpeed checkpoints and updates their manifests to match, then reshards or resumes them."""

import random
import shutil
import tempfile
from pathlib import Path

from faults.kills import KINDS, STEPS, Trainings
from faults.mutations import damaged_bytes
from faults.outcomes import HANG, LINE, RIGHT, TRACEBACK, WRONG, Tally, outcome_of

from llata_fast.durable import write_manifest
from llata_fast.training.deepspeed_state import reshard


def try_shards(trainings: Trainings, number: int, seed: int, tally: Tally):
    """Damage and resume a checkpoint `number` times under each ZeRO stage.

    Every second one is resharded before that, half of these already damaged; one that is refused is not resumed.
    """
    for kind in (kind for kind in KINDS if "ZeRO" in kind.name):
        trainings.prepare(kind)
        whole = trainings.folder / f"whole {kind.name}"
        assert trainings.run(kind, whole) == [0] * kind.ranks, trainings.log()
        rng = random.Random(f"{seed} {kind.name} shards")
        for index in range(number):
            place = Path(tempfile.mkdtemp(dir=trainings.folder))
            run = shutil.copytree(whole, place / "run")
            checkpoint = run / f"checkpoint-{STEPS}"
            if index % 2:
                if index % 4 == 3:
                    _damage(checkpoint, rng)
                outcome = outcome_of(lambda checkpoint=checkpoint: reshard(checkpoint), lambda path: path.is_dir())
                tally.add(f"{kind.name}, resharded", *outcome)
                if outcome[0] != RIGHT:
                    shutil.rmtree(place)
                    continue
            # an undamaged checkpoint checks the harness itself
            damaged = "nothing" if index < 2 else _damage(checkpoint, rng)
            flags = f"--resume_from_checkpoint={checkpoint}", f"--max_steps={STEPS + 1}"
            statuses = trainings.run(kind, run, *flags)
            what = "universal, resumed" if index % 2 else "resumed"
            tally.add(f"{kind.name}, {what}", *_outcome(trainings, run, statuses, damaged))
            shutil.rmtree(place)
        tally.keep()


def _damage(checkpoint: Path, rng: random.Random) -> str:
    """Damage one of DeepSpeed's files; returns which and how."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.parent != checkpoint)
    path = rng.choice([*files, checkpoint / "latest"])
    path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    write_manifest(checkpoint)
    return str(path.relative_to(checkpoint))


def _outcome(trainings: Trainings, run: Path, statuses: list[int | None], damaged: str) -> tuple[str, str]:
    said = "\n".join((trainings.folder / f"log-{rank}").read_text() for rank in range(len(statuses)))
    if None in statuses:
        return HANG, f"{damaged} {said}"
    if damaged == "nothing" and statuses != [0] * len(statuses):
        return WRONG, f"the resume of what is whole: {statuses} {said[-3000:]}"
    if statuses == [0] * len(statuses):
        # the correct bytes are unknown, so any result counts as right
        return RIGHT if (run / "model.safetensors").is_file() else TRACEBACK, f"{damaged} {said}"
    # one rank prints the reason, and the others end with it
    clear = "Traceback" not in said and ": error: " in said and set(statuses) <= {1, 2}
    return (LINE if clear else TRACEBACK), f"{damaged} {statuses} {said[-3000:]}"
