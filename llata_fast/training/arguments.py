"""The command line of training: our fields, the Trainer's, and a YAML file that may set any of them."""

import argparse
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import yaml
from accelerate import PartialState
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available

from ..cli import Parser, training_parser, unknown_option
from ..errors import InputError
from ..settings import DataSettings, ModelSettings, TrainingSettings
from .deepspeed_config import check_deepspeed_config, leave_out_shared_memory
from .initial import model_settings_of
from .presets import preset_for
from .pretraining import PRETRAINING

# the option's name in transformers, and its older name
_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


# windows of a GPU step below which launches dominate, so it is compiled by default; `bench/compiled.py --write`
# measures it on a GPU; 0 means never
COMPILED_BELOW = 0


@dataclass
class ForecastTrainingArguments(TrainingSettings, TrainingArguments):  # type: ignore[misc]  # None until settled
    """`TrainingSettings` plus all the Trainer's arguments, resolved for this machine."""

    def __post_init__(self):
        TrainingSettings.__post_init__(self)
        # before any value is derived from another
        self.given = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        # without an accelerator, the Trainer rejects bf16 unless the CPU is requested explicitly
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.average_decay and self.deepspeed is not None:
            raise InputError("average_decay is not supported under DeepSpeed: give --average_decay 0")
        if self.skip_nonfinite and self.deepspeed is not None:
            raise InputError("skip_nonfinite is not supported under DeepSpeed: give --skip_nonfinite 0")
        for item in fields(self):
            if isinstance(value := getattr(self, item.name, None), float) and not math.isfinite(value):
                raise InputError(f"{item.name} must be a finite number, got {value}")
        if self.deepspeed is not None:
            check_deepspeed_config(self.deepspeed)
            leave_out_shared_memory()
        if self.deterministic:
            # cuBLAS reads it when it starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self._settle_batch_size()
        self._settle_precision()
        self._settle_compilation()
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        elif self.report_to not in ("none", "all", *(installed := get_available_reporting_integrations())):
            raise InputError(f"report_to {self.report_to}: not installed; available: {', '.join(installed) or 'none'}")
        if self.eval_strategy == "no" or self.save_strategy == "no":
            # without validation and checkpoints there is no best epoch to load
            self.load_best_model_at_end = False
        # the datasets return complete batches, in the precision that the statistics need
        self.remove_unused_columns = False
        self.batch_eval_metrics = True
        self.label_names = ["future_values"]
        self.dataloader_pin_memory = False
        if self.ddp_find_unused_parameters is None:
            # every trained weight takes part in every loss, and the search for others walks the graph in each step
            self.ddp_find_unused_parameters = False
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            # TrainingArguments passes ddp_timeout to the ranks of GPUs only; it finds this group
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
        TrainingArguments.__post_init__(self)
        self._settle_checkpointing()
        # launchers start one process per GPU; torch's DataParallel would split the batch a second time
        if self._n_gpu > 1:
            self._n_gpu = 1

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass recomputes the backbone's blocks."""
        return any(getattr(self, name, False) for name in _CHECKPOINTING)

    @property
    def micro_batch(self) -> int:
        """Windows of one rank in one pass."""
        assert self.per_device_train_batch_size is not None, "derived from batch_size"
        return self.per_device_train_batch_size

    @property
    def windows_per_step(self) -> int:
        """Windows in one step, over all ranks and accumulation steps."""
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        return self.micro_batch * ranks * self.gradient_accumulation_steps

    def _settle_checkpointing(self):
        for name in _CHECKPOINTING:
            if getattr(self, name, False):
                kwargs = {"use_reentrant": False} | (getattr(self, f"{name}_kwargs") or {})
                if kwargs["use_reentrant"]:
                    raise InputError(f"{name} must be non-reentrant: use_reentrant true is not supported")
                setattr(self, f"{name}_kwargs", kwargs)

    def _settle_compilation(self):
        on_gpu = not self.use_cpu and self.deepspeed is None
        if self.torch_compile is None:
            asked = self.torch_compile_mode is not None or self.torch_compile_backend is not None
            self.torch_compile = asked or (on_gpu and self.micro_batch < COMPILED_BELOW)
        if not self.torch_compile:
            return
        # a smaller batch would trigger a recompilation with dynamic shapes, which full batches would then use, too
        os.environ.setdefault("ACCELERATE_DYNAMO_USE_DYNAMIC", "false")
        # with few channels, launches dominate: CUDA graphs avoid them, but cannot capture ZeRO's hooks between blocks
        if on_gpu and self.torch_compile_mode is None:
            self.torch_compile_mode = "reduce-overhead"

    def _settle_batch_size(self):
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
        if self.fp16 and self.use_cpu:
            raise InputError("fp16 needs a GPU; on a CPU use --precision fp32 or bf16")
        if self.precision in (None, "auto") and not self.fp16:
            self.precision = "bf16" if self.bf16 or self._bf16_pays() else "fp32"
        self.bf16 = self.precision == "bf16"

    def _bf16_pays(self) -> bool:
        # on a CPU DeepSpeed would cast the weights themselves, which loses accuracy and gains little speed
        return has_bf16(self.use_cpu) and not (self.use_cpu and self.deepspeed is not None)


def has_bf16(cpu: bool) -> bool:
    """Whether the CPU, or else the GPU, has bf16 matrix units; emulated bf16 is much slower than fp32."""
    if not cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # private in torch, and missing in some versions
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelSettings, DataSettings, ForecastTrainingArguments]:
    """Defaults < the dataset's preset < YAML file (`--config`) < command line.

    An unknown flag or key ends the program with one line.
    """
    # the short help does not need the Trainer's options, whose import is slow
    ours, _ = training_parser().parse_known_args(argv)
    parser = _parser()
    if ours.help_all:
        parser.print_help()
        parser.exit()
    flags = given_flags(argv)
    try:
        settings = _read_yaml(flags["config"], parser) if "config" in flags else {}
        chosen = vars(parser.parse_args([])) | settings | flags
        preset = _preset(chosen, changed={*settings, *flags})
        parser.set_defaults(**preset | settings)
        values = vars(parser.parse_args(argv))
        model, data = (_taken(values, kind) for kind in (ModelSettings, DataSettings))
        return model, data, _taken(values, ForecastTrainingArguments)
    except ValueError as error:
        parser.error(str(error))


def choose_settings(given: dict[str, Any]) -> tuple[ModelSettings, DataSettings, ForecastTrainingArguments]:
    """Defaults < the dataset's preset < `given`, by the options' names; raises InputError for an unknown name."""
    kinds = (ModelSettings, DataSettings, ForecastTrainingArguments)
    known = {item.name: item.default for kind in kinds for item in fields(kind) if item.init}
    if unknown := [name for name in given if name not in known]:
        raise InputError(unknown_option(unknown[0], known))
    preset = _preset(known | given, changed=set(given))
    model, data, training = (_taken(preset | given, kind) for kind in kinds)
    return model, data, training


def _preset(chosen: dict[str, Any], changed: set[str]) -> dict[str, Any]:
    """The preset between the defaults and the user's options: of pre-training, of `--init`, or of the dataset."""
    if chosen["corpus"] is not None:
        preset = PRETRAINING
    else:
        few_shot = chosen["few_shot_percent"] is not None
        preset = preset_for(chosen["dataset"], changed=changed, recipe=chosen["recipe"], few_shot=few_shot)
    if chosen["init"] is not None:
        return preset | model_settings_of(chosen["init"])
    return preset


def _taken(values: dict, kind: type):
    """The settings of one class among all of them."""
    return kind(**{item.name: values[item.name] for item in fields(kind) if item.name in values})


def given_flags(argv: list[str] | None) -> dict:
    """The options on the command line, including those set to their defaults."""
    parser, absent = _parser(), object()
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([])), absent))
    return {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not absent}


def _parser() -> Parser:
    """Our options, then the Trainer's that ours do not replace."""
    parser = training_parser(add_help=False)
    parser.set_defaults(help_all=argparse.SUPPRESS)
    ours = {action.dest for action in parser._actions}
    group = parser.add_argument_group("options of the Hugging Face Trainer")
    theirs: Any = TrainingArguments
    for action in HfArgumentParser(theirs, add_help=False)._actions:
        if action.dest not in ours:
            group._add_action(action)
    return parser


def _read_yaml(path: str, parser: Parser) -> dict:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    # deeply nested brackets exhaust the recursion limit
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of option names to values")
    known = {action.dest for action in parser._actions} - {"config", "help_all"}
    if unknown := [name for name in values if name not in known]:
        raise InputError(f"{path}: {unknown_option(str(unknown[0]), known)}")
    own = {name for kind in (ModelSettings, DataSettings, TrainingSettings) for name in get_type_hints(kind)}
    if mappings := [name for name, value in values.items() if name in own and isinstance(value, dict)]:
        raise InputError(f"{path}: {mappings[0]} cannot be a mapping")
    lists = {name: value for name, value in values.items() if name in own and isinstance(value, list)}
    several = {action.dest for action in parser._actions if action.nargs is not None}
    if single := [name for name in lists if name not in several]:
        raise InputError(f"{path}: {single[0]} takes one value, not a list")
    if nested := [name for name, value in lists.items() if any(isinstance(item, (list, dict)) for item in value)]:
        raise InputError(f"{path}: {nested[0]} cannot be a list of lists or mappings")
    if empty := [name for name, value in values.items() if value is None and name not in _may_be_none()]:
        raise InputError(f"{path}: {empty[0]} has no value")
    parser.source = f"{path}: "
    checked = vars(parser.parse_args(_as_flags(values)))
    parser.source = ""
    return {name: None if value is None else checked[name] for name, value in values.items()}


def _may_be_none() -> set[str]:
    groups = (ModelSettings, DataSettings, ForecastTrainingArguments)
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    return {name for name, hint in hints.items() if type(None) in get_args(hint)}


def _as_flags(values: dict) -> list[str]:
    """A file's values as command-line flags, so that the same conversions and checks apply."""
    flags = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def resolved_settings(model, data: DataSettings, training: ForecastTrainingArguments) -> dict:
    """The settings of a run as one flat mapping that `--config` accepts.

    It holds all model, data and our own training fields, and the Trainer's fields that differ from their defaults.
    """
    settings = {item.name: getattr(model.config, item.name) for item in fields(ModelSettings)} | asdict(data)
    # the parser's defaults, as it converts some fields to other types
    defaults = vars(_parser().parse_args([]))
    for name, value in training.given.items():
        value = value.value if isinstance(value, Enum) else value
        own = name in TrainingSettings.__annotations__
        if name not in _ONE_RUN and (own or value != defaults[name]):
            settings[name] = value
    # precision implies it, and giving both is an error
    settings.pop("bf16", None)
    return settings | {"precision": training.precision}


# options that name or resume one particular run
_ONE_RUN = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "trust_checkpoint", "local_rank"}
