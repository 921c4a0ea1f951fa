"""Check a DeepSpeed JSON before DeepSpeed reads it: DeepSpeed crashes on wrong types and ignores unknown keys."""

import difflib
import json
from pathlib import Path
from typing import Any

from ..errors import InputError

_COUNTS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print")
_SECTIONS = (
    "activation_checkpointing",
    "aio",
    "bf16",
    "checkpoint",
    "comms_logger",
    "csv_monitor",
    "data_types",
    "flops_profiler",
    "fp16",
    "optimizer",
    "scheduler",
    "tensorboard",
    "torch_autocast",
    "wandb",
    "zero_optimization",
)
_FLAGS = (
    "dump_state",
    "memory_breakdown",
    "prescale_gradients",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)
_NUMBERS = ("gradient_clipping", "gradient_predivide_factor")
_TEXTS = ("communication_data_type",)
_KNOWN = {*_COUNTS, *_SECTIONS, *_FLAGS, *_NUMBERS, *_TEXTS}


def check_deepspeed_config(config: str | dict[str, Any]):
    """Raise InputError unless DeepSpeed understands `config`, a mapping or the path of a JSON file.

    At the top level DeepSpeed accepts any name: "zero_optimisation" would silently mean stage 0. Values inside its
    sections are validated by its own classes, except those that are "auto".
    """
    where = "deepspeed" if isinstance(config, dict) else str(config)
    values = config if isinstance(config, dict) else _read(Path(config))
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a mapping of DeepSpeed's settings, got {_short(values)}")
    for name, value in values.items():
        _check_known(where, name)
        if value != "auto" and not _fits(name, value):
            raise InputError(f"{where}: {name} cannot be {_short(value)}")
    _check_section(where, "zero_optimization", values.get("zero_optimization", {}))
    for name in ("bf16", "fp16"):
        _check_section(where, name, values.get(name, {}))


def leave_out_shared_memory():
    """Stop DeepSpeed from compiling its shared-memory all-reduce for CPU ranks; call it before the ranks join.

    Only tensor-parallel inference uses it. Compiling it takes a minute of the first start, one rank after another. A
    rank that dies meanwhile leaves a lock on which every later start waits forever, and so does a rank that dies while
    the others look for its memory. If a version of DeepSpeed lacks the list below, it still compiles.
    """
    import deepspeed.ops

    getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the DeepSpeed configuration {path}: {error.strerror}") from None
    # deeply nested brackets exhaust the recursion limit
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def _check_known(where: str, name: str):
    if name not in _KNOWN:
        near = difflib.get_close_matches(str(name), _KNOWN, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise InputError(f"{where}: DeepSpeed would ignore {name!r}{hint}")


def _fits(name: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in _COUNTS:
        return number and value == int(value) and 0 < value < 2**31 if _finite(value) else False
    if name in _NUMBERS:
        return number and _finite(value) and value >= 0
    kind = dict if name in _SECTIONS else bool if name in _FLAGS else str
    return isinstance(value, kind)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _check_section(where: str, section: str, values: dict[str, Any]):
    if values == "auto":
        raise InputError(f"{where}: section {section} cannot be 'auto'; only its values can")
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    kinds = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    try:
        kinds[section](**_without_auto(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, (section, *first["loc"])))
        raise InputError(f"{where}: {name} cannot be {_short(first['input'])}: {first['msg']}") from None
    except (TypeError, ValueError, AssertionError, OverflowError) as error:
        raise InputError(f"{where}: {section}: {error}") from None


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    """The mapping without "auto" values, which transformers fills in."""
    return {
        name: _without_auto(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value != "auto"
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
