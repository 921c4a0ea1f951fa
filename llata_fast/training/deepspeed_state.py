"""State that DeepSpeed partitions over ranks: gather it for a checkpoint, or reshard it for other ranks or stages."""

import contextlib
import importlib
import io
import os
import pickle
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..durable import write_text
from ..errors import InputError

# DeepSpeed's own name for the file that points to a universal checkpoint
_UNIVERSAL = "latest_universal"

# classes in its files besides tensors and plain values; constructing any of these is harmless
_DEEPSPEED_CLASSES = (
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def restricted_unpickling(trust: bool = False) -> Iterator[None]:
    """Inside, `torch.load` only loads tensors, plain values and DeepSpeed's own classes, whatever its caller requests.

    DeepSpeed requests unrestricted loading, which lets a checkpoint run any code. `trust` allows that.

    Raises:
        InputError: a file holds anything else.
    """
    if trust:
        yield
        return
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_deepspeed_classes()):
            yield
    except pickle.UnpicklingError as error:
        # torch's own message would advise loading it unrestricted
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line), "")
        raise InputError(
            f"the checkpoint holds more than tensors and DeepSpeed's own classes ({reason.strip() or 'damaged'}): "
            "loading it could run any code; give trust_checkpoint if you trust its author"
        ) from None
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _deepspeed_classes() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    found: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for path in _DEEPSPEED_CLASSES:
        module, _, name = path.rpartition(".")
        # the classes move between versions
        with contextlib.suppress(ImportError, AttributeError):
            found.append(getattr(importlib.import_module(module), name))
    return found


def trained_state(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """State dict of the weights that `model` trains, in the optimizer's fp32 values, and of its buffers.

    Every rank calls it and gathers one weight at a time; ranks with `keep` get all of them, on the CPU.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    state = {}
    persistent = model.state_dict().keys()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = safe_get_full_fp32_param(parameter)
            if keep:
                # without partitions (stage 0) the model's own values are the only ones
                state[name] = (parameter if value is None else value).detach().to("cpu", copy=True)
    if keep:
        state |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return state


def is_universal(checkpoint: str | Path) -> bool:
    """Whether the checkpoint has been resharded."""
    return Path(checkpoint, _UNIVERSAL).is_file()


def reshard(checkpoint: str | Path, trust: bool = False) -> Path:
    """Write DeepSpeed's universal form of a Trainer's checkpoint beside the original; returns its folder.

    Training resumes from it with any number of ranks and any ZeRO stage. `trust` as in `restricted_unpickling`.

    Raises:
        InputError: the folder holds no DeepSpeed checkpoint, an already universal one, or a damaged one.
    """
    if is_universal(checkpoint):
        raise InputError(f"{checkpoint} is already resharded: resume from it with any number of ranks")
    source = _states_of(Path(checkpoint))
    if source is None or not any(source.glob("*_optim_states.pt")):
        raise InputError(
            f"{checkpoint} holds no DeepSpeed checkpoint: give a checkpoint-<step> folder of a DeepSpeed run"
        )
    target = source.with_name(f"{source.name}_universal")
    if target.is_symlink():
        raise InputError(f"cannot write {target}: it leads elsewhere")
    complete = False
    try:
        with restricted_unpickling(trust):
            _convert(source, target)
            _settle_for_every_stage(target)
        complete = True
    except InputError:
        raise
    except Exception as error:  # converting a damaged file can raise anything
        raise InputError(f"{source} cannot be converted ({type(error).__name__}: {error})") from error
    finally:
        # otherwise an interrupted conversion would be taken for a complete one
        if not complete:
            shutil.rmtree(target, ignore_errors=True)
            Path(checkpoint, _UNIVERSAL).unlink(missing_ok=True)
    write_text(Path(checkpoint, _UNIVERSAL), target.name)
    return target


def _states_of(checkpoint: Path) -> Path | None:
    """The folder of states that DeepSpeed's `latest` names, if it is inside the checkpoint."""
    try:
        name = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    # a path could lead to another checkpoint, which would then be overwritten
    return checkpoint / name if re.fullmatch(r"[\w.-]{0,200}\w", name) else None


def _convert(source: Path, target: Path):
    from deepspeed.checkpoint import ds_to_universal

    options = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # ZeRO-1 and 2 omit a table that only tensor parallelism needs
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)


def _settle_for_every_stage(target: Path):
    """Rewrite the converted files so that every ZeRO stage can load them: DeepSpeed converts for the source's stage.

    ZeRO-3 expects the same values with the model's states under another name, the step in another file, and plain
    tensors where the other stages need a dictionary around them.
    """
    states = next(target.glob("*_model_states.pt"))
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        if not (target / name).exists():
            shutil.copy2(states, target / name)
    from deepspeed import __version__ as deepspeed_version

    common_path = target / "zero" / "optimizer_state.pt"
    common = torch.load(common_path)
    if "optimizer_state_dict" in common:
        step = common["optimizer_state_dict"]["state"][0]["step"]
        for path in list(target.glob("zero/*/*.pt")):
            tensor = torch.load(path)
            torch.save(tensor if isinstance(tensor, dict) else {"param": tensor}, path)
            torch.save(step, path.with_name("step.pt"))
    else:
        step = torch.load(next(target.glob("zero/*/step.pt")))
        common["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": common["param_groups"]}
    torch.save({"ds_version": deepspeed_version} | common, common_path)
