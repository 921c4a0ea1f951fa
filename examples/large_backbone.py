"""Plan the training of a large backbone, then run it: with a 4-bit base or not, and under which ZeRO stage?

    python examples/large_backbone.py meta-llama/Llama-3.1-70B 80 8 h100-80g
    python examples/large_backbone.py meta-llama/Llama-3.1-70B 80 8 h100-80g --run --dataset my.csv

Prints the command for the fastest plan that fits; --run starts it. The base is frozen. int4 (bitsandbytes, CUDA only)
stores it in about half a byte per parameter, with a full copy on every GPU; ZeRO-3 partitions it in 16 bits.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import contextlib
import io
import json
import shlex
import subprocess
import sys

from llata_fast.__main__ import main as llata_fast_command

PRECISIONS = ("auto", "int4")


def plan(backbone: str, num_layers: str, gpus: str, gpu: str, base_precision: str) -> dict:
    """The output of `llata-fast plan --json` for all strategies."""
    words = ["--backbone", backbone, "--num_layers", num_layers, "--gpus", gpus, "--gpu", gpu]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        llata_fast_command(["plan", *words, "--base_precision", base_precision, "--json"])
    return json.loads(printed.getvalue())


def training_command(backbone: str, num_layers: str, gpus: str, gpu: str, options: list[str]) -> list[str]:
    """The command for the fastest of the strategies recommended for each precision of the base."""
    plans = {precision: plan(backbone, num_layers, gpus, gpu, precision) for precision in PRECISIONS}
    fitting = {precision: found for precision, found in plans.items() if found["recommended"]}
    if not fitting:
        sys.exit(f"nothing fits {gpus} x {gpu}: use more GPUs or fewer blocks")
    seconds = {precision: found["stages"][found["recommended"]]["step_seconds"] for precision, found in fitting.items()}
    precision = min(seconds, key=seconds.__getitem__)
    chosen = fitting[precision]
    words = ["--backbone", backbone, "--num_layers", num_layers, "--base_precision", precision]
    if chosen["recommended"] != "ddp":
        words += ["--deepspeed", f"ds_configs/{chosen['recommended']}.json"]
    if chosen["recommended_checkpointing"]:
        words.append("--gradient_checkpointing")
    return ["deepspeed", "--num_gpus", gpus, "train.py", *words, *options]


def main(backbone: str, num_layers: str, gpus: str, gpu: str, *options: str):
    rest = [word for word in options if word != "--run"]
    command = training_command(backbone, num_layers, gpus, gpu, rest)
    print(shlex.join(command))
    if "--run" in options:
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
