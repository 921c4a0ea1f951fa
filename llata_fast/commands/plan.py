"""Estimate what a training needs, before you rent anything.

From the configuration alone: parameters, memory of a GPU by part, bytes communicated, FLOPs and time of a step for
every parallel strategy, and the fastest one that fits. Rates come from data sheets; times are estimates.
    python -m llata_fast plan --backbone meta-llama/Llama-3.1-70B --num_layers 80 --gpus 64 --gpu h100-80g
"""

import argparse
import json
from dataclasses import asdict, fields

from ..cli import add_settings
from ..errors import InputError
from ..planning import STAGES
from ..planning.hardware import DEVICES
from ..settings import ModelSettings


def add_arguments(parser: argparse.ArgumentParser):
    add_settings(parser, ModelSettings)
    parser.add_argument("--gpu", default="h100-80g", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs (or of CPU ranks)")
    parser.add_argument("--stage", default="auto", help=f"auto (all of them), or one of {', '.join(STAGES)}")
    parser.add_argument("--batch_size", type=int, default=None, help="windows per step, all GPUs; default 32 per GPU")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1, help="micro-steps per step")
    parser.add_argument("--channels", type=int, default=7, help="number of channels of the series")
    for role in ("known", "past", "static"):
        parser.add_argument(
            f"--{role}_covariates",
            nargs="+",
            metavar="NAME",
            help="numeric columns; NAME=N for a column of N categories" if role == "known" else "in the same form",
        )
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default bf16; fp32 on a CPU")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="plan only with it; default: both")
    parser.add_argument(
        "--corpus_steps", type=float, help="time steps seen once in a pre-training, such as 27e9, to estimate its cost"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _covariate_sizes(options: argparse.Namespace) -> dict[str, list[int]] | None:
    """Role -> number of categories of each column, 0 for a numeric one; None without covariates."""
    roles = {role: getattr(options, f"{role}_covariates") or [] for role in ("known", "past", "static")}
    sizes: dict[str, list[int]] = {}
    for role, columns in roles.items():
        counts = [name.partition("=")[2] or "0" for name in columns]
        if wrong := [name for name, count in zip(columns, counts, strict=True) if not count.isdecimal()]:
            raise InputError(f"{role}_covariates: {wrong[0]!r} must be NAME, or NAME=N with N categories")
        sizes[role] = [int(count) for count in counts]
    return sizes if any(sizes.values()) else None


def main(options: argparse.Namespace):
    from ..planning.corpus_pass import in_words, pretraining_cost
    from ..planning.plan_text import as_json, as_text, model_config
    from ..planning.planner import Request, make_plan

    if options.stage not in ("auto", *STAGES):
        raise InputError(f"stage {options.stage!r} is not one of auto, {', '.join(STAGES)}")
    if options.gradient_accumulation_steps < 1:
        raise InputError(f"gradient_accumulation_steps must be at least 1, got {options.gradient_accumulation_steps}")
    request = Request(
        gpu=options.gpu,
        gpus=options.gpus,
        batch_size=32 * options.gpus * options.gradient_accumulation_steps
        if options.batch_size is None
        else options.batch_size,
        micro_steps=options.gradient_accumulation_steps,
        channels=options.channels,
        precision=options.precision or ("fp32" if options.gpu == "cpu" else "bf16"),
        checkpointing=True if options.gradient_checkpointing else None,
    )
    arguments = ModelSettings(**{item.name: getattr(options, item.name) for item in fields(ModelSettings)})
    config = model_config(arguments, options.channels, _covariate_sizes(options))
    plan = make_plan(config, request, STAGES if options.stage == "auto" else (options.stage,))
    cost = None if options.corpus_steps is None else pretraining_cost(plan, options.corpus_steps)
    if options.json:
        print(json.dumps(as_json(plan) | ({} if cost is None else {"pretraining": asdict(cost)})))
    else:
        print(as_text(plan) if cost is None else f"{as_text(plan)}\n{in_words(cost)}")
