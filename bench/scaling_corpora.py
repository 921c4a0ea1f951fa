"""The cost of pre-training on corpora, for clusters of several sizes (`scaling.py --corpora`)."""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

from itertools import product
from pathlib import Path

import matplotlib
import pandas as pd
from tqdm import tqdm

from llata_fast.planning.planner import Request, make_plan
from llata_fast.planning.corpus_pass import pretraining_cost
from llata_fast.planning.plan_text import model_config
from llata_fast.settings import ModelSettings
from llata_fast.training.pretraining import PRETRAINING

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

FILE, PICTURE = "corpora.csv", "corpora.png"
KEY = ["device", "backbone", "num_layers", "gpus", "windows", "corpus_steps"]
WINDOWS = 256
"""Windows per GPU and step."""
LOTSA = 27e9
"""Observations in LOTSA (arXiv 2402.02592)."""

_MODEL = ("context_length", "prediction_length", "patch_length", "patch_stride", "quantile_levels", "intermediate_size")


def add_rows(path: Path, device: str, backbones: list[str], ranks: list[int], corpus_steps: float):
    """Plan all combinations that `path` lacks, and write each row at once."""
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)
    for backbone, gpus in tqdm(list(product(backbones, ranks)), desc="plans of pre-training"):
        source, _, layers = backbone.rpartition(":")
        key = dict(zip(KEY, (device, source, int(layers), gpus, WINDOWS * gpus, corpus_steps), strict=True))
        if not (table[KEY] == pd.Series(key)).all(axis=1).any():
            table = pd.concat([table, pd.DataFrame([key | plan_of(key)])], ignore_index=True)
            table.to_csv(path, index=False, float_format="%.6g")


def plan_of(key: dict) -> dict:
    """The planner's recommendation for the pre-training recipe, and the cost of one pass over the corpora."""
    settings = ModelSettings(
        backbone=key["backbone"], num_layers=key["num_layers"], **{name: PRETRAINING[name] for name in _MODEL}
    )
    request = Request(key["device"], key["gpus"], key["windows"], channels=1)
    plan = make_plan(model_config(settings, 1), request)
    cost, best = pretraining_cost(plan, key["corpus_steps"]), plan.recommended
    row = {"tokens": cost.tokens, "training_steps": cost.training_steps, "petaflops": cost.petaflops}
    if best is None:
        return row | {"stage": "none fits"}
    return row | {
        "stage": best.stage + (", checkpointing" if best.checkpointing else ""),
        "step_seconds": best.step_seconds,
        "tokens_per_s": plan.tokens / best.step_seconds,
        "hours": cost.hours,
        "gpu_hours": cost.gpu_hours,
    }


def section(path: Path) -> list[str]:
    """Lines for the study's README, with one table row per plan."""
    if not path.exists():
        return []
    table = pd.read_csv(path)
    lines = [
        "## Corpora",
        "",
        "The cost of one pass, which forecasts every step of the corpora once, with the recipe of `train.py --corpus`",
        f"(windows of 512 + 96 steps, {WINDOWS} per GPU and step, 16 tokens each), bf16 and the planner's stage. Times",
        "come from data sheets, as above. `python bench/scaling.py --corpora` adds rows for `--corpus_steps`.",
        "",
        "| steps | backbone | blocks | GPUs | stage | tokens | training steps | tokens/s | hours | GPU hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        fits = pd.notna(row.hours)
        time = f"{row.tokens_per_s:,.0f} | {row.hours:,.1f} | {row.gpu_hours:,.0f}" if fits else "- | - | -"
        lines.append(
            f"| {row.corpus_steps:,.0f} | {row.backbone} | {row.num_layers} | {row.gpus} {row.device} | {row.stage} | "
            f"{row.tokens:,.0f} | {row.training_steps:,.0f} | {time} |"
        )
    return [*lines, "", f"![hours of a pass]({PICTURE})", ""]


def draw(path: Path):
    """Plot hours per pass against GPUs, with one line per backbone."""
    if not path.exists():
        return
    figure, axes = plt.subplots(figsize=(7, 4))
    table = pd.read_csv(path)
    for (backbone, steps), rows in table.dropna(subset="hours").groupby(["backbone", "corpus_steps"], sort=False):
        axes.plot(rows.gpus, rows.hours, "o-", label=f"{backbone.rpartition('/')[2]}, {steps / 1e9:g} billion steps")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted(table.gpus.unique())
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_xlabel(f"GPUs ({', '.join(table.device.unique())})")
    axes.set_ylabel("hours of one pass")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title("Pre-training on corpora (planned, not measured)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path.with_name(PICTURE), dpi=110)
    plt.close(figure)
