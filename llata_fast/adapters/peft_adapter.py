"""The temporal branch's changes to its backbone as a PEFT adapter: LoRA, tuned norms and learned positions.

PEFT loads it on the backbone cut to `num_layers` blocks; the hidden states are then those of the temporal branch:

    base = AutoModel.from_pretrained(SOURCE, num_hidden_layers=NUM_LAYERS)
    decoder = PeftModel.from_pretrained(base, FOLDER)
    decoder(inputs_embeds=tokens).last_hidden_state

Patch embedding, encoder and head are not part of an adapter: they come before and after the backbone.
"""

import importlib.util
from pathlib import Path
from typing import cast

from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..backbone.twin import LoraLinear, TwinBackbone, TwinNorm
from ..errors import InputError
from ..modeling import LlataForPrediction

# PEFT's name for the model inside its wrapper
_PREFIX = "base_model.model."


def export_adapter(model: LlataForPrediction, folder: str | Path) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors` to `folder`; returns the folder.

    Raises:
        InputError: PEFT is not installed, or the model has no LoRA: it is merged, was trained with lora_r 0, or is an
            ablation without the pre-trained backbone.
    """
    if importlib.util.find_spec("peft") is None:
        raise InputError("an adapter needs PEFT: pip install llata-fast[export]")
    from peft import LoraConfig

    backbone, config = model.backbone, model.config
    lora = _modules(backbone, LoraLinear)
    if not isinstance(backbone, TwinBackbone) or not lora:
        raise InputError("this model has no LoRA to export: it is merged, or was trained without LoRA")
    norms = _modules(backbone, TwinNorm)
    saved = {name.rpartition(".")[2] for name in norms}
    if backbone.positions is not None:
        saved.add("wpe")
    adapter = LoraConfig(
        r=config.lora_r,
        # PEFT declares an int but uses any number
        lora_alpha=cast(int, config.lora_alpha),
        lora_dropout=config.lora_dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in lora}),
        modules_to_save=sorted(saved),
        # GPT-2 stores its projections [in, out]
        fan_in_fan_out=any(isinstance(module.base, Conv1D) for module in lora.values()),
        base_model_name_or_path=str(config.backbone).partition("@")[0],
        inference_mode=True,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_weights(backbone, lora, norms), folder / "adapter_model.safetensors", {"format": "pt"})
    adapter.save_pretrained(str(folder))
    return folder


def _modules(backbone, kind: type) -> dict:
    decoder = getattr(backbone, "model", None)
    return {} if decoder is None else {name: m for name, m in decoder.named_modules() if isinstance(m, kind)}


def _weights(backbone: TwinBackbone, lora: dict, norms: dict) -> dict[str, Tensor]:
    weights = {}
    for name, module in lora.items():
        weights[f"{name}.lora_A.weight"] = module.lora_a.weight
        weights[f"{name}.lora_B.weight"] = module.lora_b.weight
    for name, module in norms.items():
        weights |= {f"{name}.{key}": value for key, value in module.tuned.state_dict().items()}
    if backbone.positions is not None:
        weights["wpe.weight"] = backbone.positions.time.weight
    return {_PREFIX + name: weight.detach().cpu().contiguous().clone() for name, weight in weights.items()}
