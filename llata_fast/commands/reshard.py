"""Convert a DeepSpeed checkpoint so that any number of ranks can resume from it, under any ZeRO stage."""

import argparse
from pathlib import Path

from ..durable import find_damage, read_manifest, write_manifest
from ..errors import InputError


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("checkpoint", help="checkpoint-<step> of a DeepSpeed run; its original files are kept")
    parser.add_argument(
        "--trust_checkpoint",
        action="store_true",
        help="load any object from its files, which can run code; without it, only tensors and DeepSpeed's classes",
    )


def main(options: argparse.Namespace):
    from ..training.deepspeed_state import is_universal

    _check_undamaged(options.checkpoint)
    best = _best_checkpoint(options.checkpoint)
    _reshard(options.checkpoint, options.trust_checkpoint)
    # its weights are loaded again when training ends, by the new number of ranks
    if best is not None and not is_universal(best):
        _check_undamaged(best)
        _reshard(best, options.trust_checkpoint)
    print(f"to resume: deepspeed --num_gpus N train.py ... --resume_from_checkpoint {options.checkpoint}")


def _check_undamaged(checkpoint: str):
    if read_manifest(checkpoint) is not None and (damage := find_damage(checkpoint)):
        raise InputError(f"{checkpoint} is damaged: {damage}")


def _reshard(checkpoint: str, trust: bool):
    from ..training.deepspeed_state import reshard

    manifest = read_manifest(checkpoint)
    print(f"written: {reshard(checkpoint, trust)}")
    if manifest is not None:
        # the manifest covers the new files; the time of writing decides which checkpoint is the last one
        write_manifest(checkpoint, written=manifest["written"])


def _best_checkpoint(checkpoint: str) -> str | None:
    """The run's best checkpoint so far, if it exists and is not this one."""
    from ..run_folder import BEST_CHECKPOINT, TRAINER_STATE
    from ..training.best_checkpoint import read_state

    there = Path(checkpoint, TRAINER_STATE).is_file()
    name = read_state(Path(checkpoint))["stateful_callbacks"].get(BEST_CHECKPOINT) if there else None
    # beside this one, even if the run was moved after it was written
    best = Path(checkpoint).resolve().parent / name if name else None
    return str(best) if best and best.is_dir() and best != Path(checkpoint).resolve() else None
