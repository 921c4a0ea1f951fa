"""Loads a model for training on every rank and measures its memory: `loading_cases.py CASES.json`.

CASES.json contains a list of {"arguments": [...], "output": path without rank}, with arguments for `train.py`.
A rank writes {"share", "peak"} in bytes of anonymous memory, which excludes the pages of mapped files.
"""

import json
import re
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed

from llata_fast.config import LlataConfig
from llata_fast.modeling import LlataForPrediction
from llata_fast.ranks import leaving_in_order
from llata_fast.training.arguments import parse_arguments


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


class Peak:
    """Peak growth of anonymous memory while the context is open, sampled every few milliseconds."""

    def __enter__(self):
        self.start = self.largest = anonymous_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.done.is_set():
            self.largest = max(self.largest, anonymous_bytes())
            time.sleep(0.002)

    def __exit__(self, *error):
        self.largest = max(self.largest, anonymous_bytes())
        self.done.set()
        self.thread.join()

    @property
    def bytes(self) -> int:
        return self.largest - self.start


def held_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model on this rank; of partitioned parameters only this rank's part counts."""
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()] + list(model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def marks(model: torch.nn.Module) -> dict[str, list[float]]:
    """First and last element of this rank's part of every frozen projection."""
    found = {}
    for name, parameter in model.backbone.named_parameters():
        if re.search(r"_proj\.(base\.)?weight$", name):
            held = getattr(parameter, "ds_tensor", parameter).detach().flatten()
            found[name] = [held[0].item(), held[-1].item()]
    return found


def main():
    (cases,) = (Path(argument) for argument in sys.argv[1:] if argument.endswith(".json"))
    for case in json.loads(cases.read_text()):
        model_args, _, args = parse_arguments(case["arguments"])
        rank = args.device and distributed.get_rank()
        with Peak() as peak:
            model = LlataForPrediction.from_backbone(LlataConfig(**asdict(model_args)), frozen_dtype=args.compute_dtype)
        result = {"peak": peak.bytes, "share": held_bytes(model), "marks": marks(model)}
        Path(f"{case['output']}-{rank}.json").write_text(json.dumps(result))
        del model, args


if __name__ == "__main__":
    with leaving_in_order():
        main()
