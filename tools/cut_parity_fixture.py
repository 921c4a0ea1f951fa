"""Reduce a file of the reference's results for the parity test: python tools/cut_parity_fixture.py SOURCE TARGET.

The source contains the reference's random weights, a batch, and the outputs, losses, features and gradients that its
code computed. Weights that the reference has twice (GPT-2's in the textual branch) are stored once. Of large gradients
every 16th row is stored, since all rows take the same path through the backward pass.
"""

import argparse

import torch
from safetensors import safe_open
from safetensors.torch import save_file

LARGE, STRIDE = 3000, 16
TIME, TEXT = "state_dict.gpt2.base_model.model.", "state_dict.gpt2_text."


def temporal_name(name: str) -> str:
    """The temporal branch's name for a weight of the textual branch; LoRA wraps the attention's projection."""
    return name.replace(TEXT, TIME).replace("c_attn.", "c_attn.base_layer.")


def cut(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {}
    for name, value in tensors.items():
        twin = tensors.get(temporal_name(name)) if name.startswith(TEXT) else None
        if twin is not None and torch.equal(twin, value):
            continue
        large = name.startswith("grad.") and value.numel() > LARGE
        kept[name] = value[::STRIDE].contiguous() if large else value
    return kept


def restore(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` with the textual branch's copies restored; large gradients stay reduced."""
    copies = {}
    for name, value in tensors.items():
        if name.startswith(TIME) and "lora" not in name:
            text = name.replace(TIME, TEXT).replace("c_attn.base_layer.", "c_attn.")
            copies[text] = value
    return copies | tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("target")
    options = parser.parse_args()
    with safe_open(options.source, "pt") as file:
        save_file(cut({name: file.get_tensor(name) for name in file.keys()}), options.target, file.metadata())


if __name__ == "__main__":
    main()
