"""Write a backbone's first blocks and its prototypes into a small folder, for machines without a hub.

Copy the folder anywhere and pass it as `--backbone FOLDER`. It leaves out the vocabulary, which is most of a small
language model, and rounds the weights to bf16.
"""

import argparse
from pathlib import Path

from ..settings import ModelSettings


def add_arguments(parser: argparse.ArgumentParser):
    defaults = ModelSettings()
    parser.add_argument("--backbone", default=defaults.backbone, help="hub id, folder, GGUF file or random:<family>")
    parser.add_argument("--num_layers", type=int, default=defaults.num_layers, help="how many first blocks to keep")
    parser.add_argument("--num_prototypes", type=int, help="V: prototypes to keep; default all, D - 1")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")


def main(options: argparse.Namespace):
    from ..backbone.bundled import write_bundle

    write_bundle(
        options.backbone,
        options.output,
        num_layers=options.num_layers,
        num_prototypes=options.num_prototypes,
        overwrite=options.overwrite,
    )
    size = sum(path.stat().st_size for path in Path(options.output).iterdir())
    print(f"{options.num_layers} blocks of {options.backbone} and its prototypes: {options.output}, {size:,} bytes")
    print(f"to train on it: python train.py --backbone {options.output} --num_layers {options.num_layers}")
