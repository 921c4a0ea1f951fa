"""Print what this machine has, what training would use, and how a DeepSpeed configuration would be resolved."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from typing import TYPE_CHECKING

from ..errors import InputError
from ..settings import ModelSettings

if TYPE_CHECKING:
    from ..training.arguments import ForecastTrainingArguments

_PACKAGES = ("torch", "triton", "transformers", "accelerate", "deepspeed", "flash-attn", "kernels", "bitsandbytes")
_EXTRAS = ("matplotlib", "pyarrow", "tensorboard")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--backbone", default=ModelSettings.backbone, help="language model to choose an attention for")
    parser.add_argument("--attn_implementation", default="auto", help="as in train.py")
    parser.add_argument("--num_tokens", type=int, default=321, help="tokens per sequence: channels, or patches")
    parser.add_argument("--deepspeed", metavar="FILE", help="DeepSpeed configuration to resolve")
    parser.add_argument("--batch_size", type=int, default=128, help="windows per step, for --deepspeed")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1, help="micro-steps, for --deepspeed")


def main(options: argparse.Namespace):
    from ..backbone.attention import choose_attention
    from ..backbone.loading import read_backbone_config

    if options.num_tokens < 1:
        raise InputError(f"--num_tokens must be at least 1, got {options.num_tokens}")
    with tempfile.TemporaryDirectory() as folder:
        training = _training_arguments(options, folder)
        config = read_backbone_config(options.backbone)
        attention = choose_attention(config, options.attn_implementation)
        rows = {name: _version(name) for name in (*_PACKAGES, *_EXTRAS)}
        rows |= {
            "devices": _devices(),
            "precision auto": str(training.precision),
            "Triton kernels": _kernels(),
            f"attention, {options.num_tokens} tokens": attention.explain(
                options.num_tokens, training.compute_dtype, training.device
            ),
        }
        for name, value in rows.items():
            print(f"{name:<{max(map(len, rows))}}  {value}")
        if options.deepspeed:
            resolved = training.hf_deepspeed_config
            try:
                # resolves sizes that depend on the model's width, and reports values that contradict the Trainer's
                resolved.trainer_config_finalize(training, argparse.Namespace(config=config), 0)
            except ValueError as error:
                raise InputError(f"--deepspeed {options.deepspeed}: {error}") from None
            print(f"{options.deepspeed}, resolved for {training.world_size} ranks:")
            print(json.dumps(resolved.config, indent=2))


def _training_arguments(options: argparse.Namespace, folder: str) -> "ForecastTrainingArguments":
    from ..training.arguments import ForecastTrainingArguments

    if options.deepspeed and not os.path.isfile(options.deepspeed):
        raise InputError(f"--deepspeed {options.deepspeed}: no such file")
    try:
        return ForecastTrainingArguments(
            output_dir=folder,
            deepspeed=options.deepspeed,
            batch_size=options.batch_size,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            report_to="none",
        )
    except InputError:
        raise
    # a damaged or contradictory configuration, or DeepSpeed is not installed
    except (ValueError, ImportError) as error:
        raise InputError(f"--deepspeed {options.deepspeed}: {error}") from None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, capability {capability}"
    return f"CPU, {torch.get_num_threads()} threads"


def _kernels() -> str:
    import torch

    from ..kernels import _launch

    if importlib.util.find_spec("triton") is None:
        return "off: triton is not installed; operations run as plain PyTorch"
    if not _launch.ENABLED:
        return "off: LLATA_KERNELS=0"
    return "on" if torch.cuda.is_available() else "off: they need a CUDA device; operations run as plain PyTorch"
