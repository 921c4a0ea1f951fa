"""The command line of training: our fields, the Trainer's, and a YAML file that may fill either."""

import json
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import NoReturn, get_args, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available

from ..config import ModelArguments
from ..errors import InputError
from .presets import RECIPES, preset_for

# the option's name in transformers, and the one it had before
_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
# of validation
_METRICS = ("mse", "mae", "loss")


@dataclass
class DataArguments:
    """Which series, and how it is read."""

    dataset: str = field(default="Metro", metadata={"help": "name in the dataset registry, or path of a CSV file"})
    data_dir: str | None = field(
        default=None, metadata={"help": "folder that holds the dataset's file; default $LLATA_DATA, then the cache"}
    )
    date_column: str | None = field(
        default=None,
        metadata={"help": "name of the date column; default the first of date, datetime, timestamp, time, ds"},
    )
    columns: list[str] | None = field(default=None, metadata={"help": "channels to use; default all but the date"})
    missing: str | None = field(
        default=None,
        metadata={
            "help": "missing values: error, or mask them; default as the registry says, else error",
            "choices": ("error", "mask"),
        },
    )
    few_shot_percent: float | None = field(
        default=None, metadata={"help": "train on the first percent of the training split only"}
    )
    recipe: str = field(
        default="tuned",
        metadata={"help": "the data set's preset: ours, or the published one", "choices": RECIPES},
    )


@dataclass
class ForecastTrainingArguments(TrainingArguments):
    """The Trainer's own arguments with our defaults, and the few it does not have."""

    output_dir: str | None = field(
        default=None, metadata={"help": "folder of the run; default runs/<dataset>-<context>-<horizon>, numbered"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "train into an output_dir that already holds a run"}
    )
    batch_size: int = field(
        default=128, metadata={"help": "windows per optimizer step over all ranks and accumulation steps"}
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "windows per rank and micro-step; default from batch_size"}
    )
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "windows per rank in evaluation"})
    precision: str | None = field(
        default=None,
        metadata={
            "help": "auto (default), fp32 or bf16; auto is bf16 where the hardware has it",
            "choices": ("auto", "fp32", "bf16"),
        },
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    projection_learning_rate: float = field(
        default=1e-3, metadata={"help": "peak learning rate of attention and alignment projections"}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's decoupled weight decay"})
    average_decay: float = field(
        default=0.0, metadata={"help": "validate, keep and test a running average of the weights; 0: the weights"}
    )
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's beta2: runs are short"})
    num_train_epochs: float = field(default=3.0, metadata={"help": "epochs at most"})
    patience: int = field(
        default=3, metadata={"help": "stop after so many evaluations without a better validation MSE; 0: never"}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning-rate schedule"})
    eval_strategy: str = field(default="epoch", metadata={"help": "when to validate: epoch, steps or no"})
    save_strategy: str = field(default="epoch", metadata={"help": "when to write a checkpoint: epoch, steps or no"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    logging_steps: float = field(default=20, metadata={"help": "steps between logged losses"})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "keep the epoch with the best validation MSE"})
    metric_for_best_model: str = field(default="mse", metadata={"help": "what the best epoch is chosen by"})
    greater_is_better: bool = field(default=False, metadata={"help": "of metric_for_best_model"})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "log the mean of earlier losses for one that is not finite"}
    )
    report_to: str | None = field(default=None, metadata={"help": "loggers; default tensorboard where installed"})
    seed: int = field(default=2021, metadata={"help": "seed of initialisation, data order and dropout"})

    def __post_init__(self):
        # before anything is derived from it
        self.given = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        # the Trainer takes bf16 without an accelerator for a mistake unless told that the CPU is meant
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if not 0 <= self.average_decay < 1:
            raise InputError(f"average_decay must be in [0, 1), got {self.average_decay}")
        if self.average_decay and self.deepspeed is not None:
            raise InputError("average_decay is not supported under DeepSpeed: give --average_decay 0")
        self._check_values()
        self._settle_batch_size()
        self._settle_precision()
        self._settle_compilation()
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        elif self.report_to not in ("none", "all", *(installed := get_available_reporting_integrations())):
            raise InputError(f"report_to {self.report_to}: none of those installed, {', '.join(installed) or 'none'}")
        if self.eval_strategy == "no" or self.save_strategy == "no":
            # the best epoch is found by validation and kept in a checkpoint
            self.load_best_model_at_end = False
        # what the datasets return is a batch already, in the precision the statistics need
        self.remove_unused_columns = False
        self.batch_eval_metrics = True
        self.label_names = ["future_values"]
        self.dataloader_pin_memory = False
        if self.ddp_find_unused_parameters is None:
            # all that is trained has a part in every loss; looking for what has none walks the graph each step
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        self._settle_checkpointing()
        # several GPUs are for launchers: torch's DataParallel would split the batch under our feet
        if self._n_gpu > 1:
            self._n_gpu = 1

    def _check_values(self):
        for name in ("patience", "learning_rate", "projection_learning_rate", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise InputError("nothing to train: give num_train_epochs above 0, or max_steps")
        if (metric := self.metric_for_best_model.removeprefix("eval_")) not in _METRICS:
            raise InputError(f"metric_for_best_model must be one of {', '.join(_METRICS)}, got {metric!r}")

    @property
    def compute_dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass computes the backbone's blocks anew."""
        return any(getattr(self, name, False) for name in _CHECKPOINTING)

    def _settle_checkpointing(self):
        for name in _CHECKPOINTING:
            if getattr(self, name, False):
                kwargs = {"use_reentrant": False} | (getattr(self, f"{name}_kwargs") or {})
                if kwargs["use_reentrant"]:
                    raise InputError(f"{name} must be non-reentrant: use_reentrant true is not supported")
                setattr(self, f"{name}_kwargs", kwargs)

    def _settle_compilation(self):
        # few channels are bound by launches: CUDA graphs take them away, but cannot capture ZeRO's hooks between blocks
        if self.torch_compile and self.torch_compile_mode is None and not self.use_cpu and self.deepspeed is None:
            self.torch_compile_mode = "reduce-overhead"

    def _settle_batch_size(self):
        per_device = ("per_device_train_batch_size", "per_device_eval_batch_size")
        for name in ("batch_size", *per_device, "gradient_accumulation_steps"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise InputError(f"{name} must be at least 1, got {number}")
        if self.per_device_train_batch_size is not None:
            return
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        micro_steps = ranks * self.gradient_accumulation_steps
        if self.batch_size % micro_steps:
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of {ranks} ranks x "
                f"{self.gradient_accumulation_steps} accumulation steps"
            )
        self.per_device_train_batch_size = self.batch_size // micro_steps

    def _settle_precision(self):
        if self.precision is not None and (self.bf16 or self.fp16):
            raise InputError("give either precision or bf16/fp16, not both")
        if self.precision in (None, "auto") and not self.fp16:
            self.precision = "bf16" if self.bf16 or self._bf16_pays() else "fp32"
        self.bf16 = self.precision == "bf16"

    def _bf16_pays(self) -> bool:
        # on a CPU DeepSpeed would cast the weights themselves, which costs accuracy and gains little
        return has_bf16(self.use_cpu) and not (self.use_cpu and self.deepspeed is not None)


def has_bf16(cpu: bool) -> bool:
    """Whether the CPU, or else the GPU, multiplies bf16 in hardware: emulated it is far slower than fp32."""
    if not cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # private in torch, and absent from some versions
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults that say something, and docstrings as they are written."""

    def _get_help_string(self, action: Action) -> str | None:
        silent = action.default is None or action.nargs == 0
        return action.help if silent else super()._get_help_string(action)


class Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line: the usage of two hundred flags helps nobody."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"formatter_class": _HelpFormatter} | kwargs)

    # what is being read, in front of every message
    source = ""

    def error(self, message: str):
        report_and_exit(self.source + message, self.prog)


INTERRUPTED = 130
"""Exit code of a shell's command that Ctrl-C has stopped."""


def report_and_exit(
    message: str | Exception, program: str | None = None, every_rank: bool = False, status: int = 2
) -> NoReturn:
    """One line on stderr (of the first local rank, unless another may be the only one to know), exit code `status`."""
    if every_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        line = " ".join(str(message).split())
        print(f"{program or Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    sys.exit(status)


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, ForecastTrainingArguments]:
    """Defaults < the data set's preset < YAML file (`--config`) < command line.

    An unknown flag or key ends the program with one line.
    """
    parser = _parser()
    flags = given_flags(argv)
    try:
        settings = _read_yaml(flags["config"], parser) if "config" in flags else {}
        chosen = vars(parser.parse_args([])) | settings | flags
        preset = preset_for(
            chosen["dataset"],
            changed={*settings, *flags},
            recipe=chosen["recipe"],
            few_shot=chosen["few_shot_percent"] is not None,
        )
        parser.set_defaults(**preset | settings)
        *arguments, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    return tuple(arguments)


def given_flags(argv: list[str] | None) -> dict:
    """What the command line says, defaults that it repeats among it."""
    parser, absent = _parser(), object()
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([])), absent))
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    return {name: value for name, value in vars(given).items() if value is not absent}


def _parser() -> Parser:
    parser = Parser((ModelArguments, DataArguments, ForecastTrainingArguments), allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of any of these fields; flags win")
    return parser


def _read_yaml(path: str, parser: Parser) -> dict:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of option names to values")
    known = {action.dest for action in parser._actions} - {"config", "help"}
    if unknown := [name for name in values if name not in known]:
        raise InputError(f"{path}: unknown option {unknown[0]}")
    if empty := [name for name, value in values.items() if value is None and name not in _may_be_none()]:
        raise InputError(f"{path}: {empty[0]} has no value")
    parser.source = f"{path}: "
    checked = vars(parser.parse_args(_as_flags(values)))
    parser.source = ""
    return {name: None if value is None else checked[name] for name, value in values.items()}


def _may_be_none() -> set[str]:
    groups = (ModelArguments, DataArguments, ForecastTrainingArguments)
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    return {name for name, hint in hints.items() if type(None) in get_args(hint)}


def _as_flags(values: dict) -> list[str]:
    """A file's values as a command line, for the same checks and conversions to see them."""
    flags = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def resolved_settings(model, data: DataArguments, training: ForecastTrainingArguments) -> dict:
    """What a run was made with, as one flat mapping that `--config` takes back.

    Model, data and our own training fields all, of the Trainer's those that differ from their defaults.
    """
    settings = {item.name: getattr(model.config, item.name) for item in fields(ModelArguments)} | asdict(data)
    # the parser's defaults: it turns some of the fields' into other types
    defaults = vars(_parser().parse_args([]))
    for name, value in training.given.items():
        value = value.value if isinstance(value, Enum) else value
        own = name in ForecastTrainingArguments.__annotations__
        if name not in _ONE_RUN and (own or value != defaults[name]):
            settings[name] = value
    # precision says it, and both together are an error
    settings.pop("bf16", None)
    return settings | {"precision": training.precision}


# what names or continues one run
_ONE_RUN = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "local_rank"}
