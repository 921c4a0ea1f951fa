"""State that DeepSpeed partitions over ranks: gathered for a checkpoint, resharded for other ranks or another stage."""

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

from ..errors import InputError

# DeepSpeed's own name for the file that names a checkpoint which any ranks can read
_UNIVERSAL = "latest_universal"

# what its files hold beside tensors and plain values; none of these does anything when it is made
_DEEPSPEED_CLASSES = (
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def restricted_unpickling(trust: bool = False) -> Iterator[None]:
    """Inside, `torch.load` makes tensors, plain values and DeepSpeed's own classes, whatever its caller asks for.

    DeepSpeed asks for everything, so that a checkpoint could run any code. `trust` lets it.

    Raises:
        InputError: a file holds something else.
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
        # torch's own advice would be to execute it
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line), "")
        raise InputError(
            f"the checkpoint holds more than tensors and DeepSpeed's own classes ({reason.strip() or 'damaged'}): "
            "loading it could run any code; give trust_checkpoint if you know who wrote it"
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
        # versions move them
        with contextlib.suppress(ImportError, AttributeError):
            found.append(getattr(importlib.import_module(module), name))
    return found


def trained_state(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict of what `model` trains, in the optimizer's fp32 values, and of its buffers; no frozen weights.

    Every rank calls it, one weight at a time is gathered, and those with `keep` get them all, on the CPU.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    state = {}
    persistent = model.state_dict().keys()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = safe_get_full_fp32_param(parameter)
            if keep:
                # a stage without partitions has no values but the model's
                state[name] = (parameter if value is None else value).detach().to("cpu", copy=True)
    if keep:
        state |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return state


def is_universal(checkpoint: str | Path) -> bool:
    """Whether the checkpoint has been resharded."""
    return Path(checkpoint, _UNIVERSAL).is_file()


def reshard(checkpoint: str | Path, trust: bool = False) -> Path:
    """Write DeepSpeed's universal form of a Trainer's checkpoint beside the one it holds; returns its folder.

    Training resumes from it with any number of ranks and any ZeRO stage. `trust` as in `restricted_unpickling`.

    Raises:
        InputError: no checkpoint of DeepSpeed there, a universal one already, or a damaged one.
    """
    if is_universal(checkpoint):
        raise InputError(f"{checkpoint} is resharded already: resume from it with any number of ranks")
    source = _states_of(Path(checkpoint))
    if source is None or not any(source.glob("*_optim_states.pt")):
        raise InputError(
            f"{checkpoint} holds no DeepSpeed checkpoint: give a checkpoint-<step> that one of its runs wrote"
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
    except Exception as error:  # a damaged file raises anything
        raise InputError(f"{source} cannot be converted ({type(error).__name__}: {error})") from error
    finally:
        # an interrupted one, too, would be taken for a whole one
        if not complete:
            shutil.rmtree(target, ignore_errors=True)
            Path(checkpoint, _UNIVERSAL).unlink(missing_ok=True)
    Path(checkpoint, _UNIVERSAL).write_text(target.name)
    return target


def _states_of(checkpoint: Path) -> Path | None:
    """The folder that DeepSpeed's `latest` names, of the checkpoint's own."""
    try:
        name = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    # another checkpoint's would be written into
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
        # ZeRO-1 and 2 leave out a table that only tensor parallelism needs
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)


def _settle_for_every_stage(target: Path):
    """Add what ZeRO-3 expects to what the other stages do: DeepSpeed converts for the stage it came from.

    Of the same values it expects the model's states under another name, the step in another file, and no dictionary
    around a tensor where the others need one.
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
