"""Make a DeepSpeed checkpoint one that any number of ranks, under any ZeRO stage, can resume from."""

import argparse
from pathlib import Path

from ..durable import find_damage, read_manifest, write_manifest
from ..errors import InputError


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("checkpoint", help="checkpoint-<step> of a run under DeepSpeed; what it holds is kept")
    parser.add_argument(
        "--trust_checkpoint",
        action="store_true",
        help="load whatever its files hold, which can run any code; without it tensors and DeepSpeed's classes alone",
    )


def run(options: argparse.Namespace):
    from ..training.deepspeed_state import is_universal

    _check_undamaged(options.checkpoint)
    best = _best_checkpoint(options.checkpoint)
    _reshard(options.checkpoint, options.trust_checkpoint)
    # at the end of training its weights are loaded again, by the ranks of then
    if best is not None and not is_universal(best):
        _check_undamaged(best)
        _reshard(best, options.trust_checkpoint)
    print(f"to go on: deepspeed --num_gpus N train.py ... --resume_from_checkpoint {options.checkpoint}")


def _check_undamaged(checkpoint: str):
    if read_manifest(checkpoint) is not None and (damage := find_damage(checkpoint)):
        raise InputError(f"{checkpoint} is damaged: {damage}")


def _reshard(checkpoint: str, trust: bool):
    from ..training.deepspeed_state import reshard

    manifest = read_manifest(checkpoint)
    print(f"written: {reshard(checkpoint, trust)}")
    if manifest is not None:
        # what was added is vouched for, too, and this is no later checkpoint than it was
        write_manifest(checkpoint, written=manifest["written"])


def _best_checkpoint(checkpoint: str) -> str | None:
    """The run's best checkpoint so far, where that is another one and still there."""
    from ..run_folder import BEST_CHECKPOINT, TRAINER_STATE
    from ..training.best_checkpoint import read_state

    there = Path(checkpoint, TRAINER_STATE).is_file()
    name = read_state(Path(checkpoint))["stateful_callbacks"].get(BEST_CHECKPOINT) if there else None
    # beside this one, wherever the run lay when it was written
    best = Path(checkpoint).resolve().parent / name if name else None
    return str(best) if best and best.is_dir() and best != Path(checkpoint).resolve() else None
