"""Runs `train.py` once for each case of a list, in one launch of several ranks: `distributed_cases.py CASES.json`.

A launch takes many times as long as three steps of a tiny model. CASES.json contains lists of arguments for `train.py`.
"""

import json
import runpy
import sys
from pathlib import Path

import torch

from llata_fast.metrics import ForecastMetrics
from llata_fast.modeling import LlataForPrediction
from llata_fast.ranks import leaving_in_order

ROOT = Path(__file__).resolve().parents[2]


def train(arguments: list[str]) -> dict[str, list[str]]:
    """`python train.py ...` in this process. Returns the kinds of tensors that passed through, by name."""
    seen = {name: set() for name in ("past_values", "future_values", "targets", "forecasts")}
    forward, update = LlataForPrediction.forward, ForecastMetrics.update

    def watched_forward(self, past_values, future_values=None, **kwargs):
        if past_values.is_meta:
            # FLOPs are being counted on tensors without values
            return forward(self, past_values, future_values, **kwargs)
        seen["past_values"].add(_kind(past_values))
        if future_values is not None:
            seen["future_values"].add(_kind(future_values))
        return forward(self, past_values, future_values, **kwargs)

    def watched_update(self, prediction, target):
        seen["targets"].add(_kind(target))
        seen["forecasts"].add(_kind(prediction))
        return update(self, prediction, target)

    LlataForPrediction.forward, ForecastMetrics.update = watched_forward, watched_update
    argv, sys.argv = sys.argv, ["train.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        sys.argv = argv
        LlataForPrediction.forward, ForecastMetrics.update = forward, update
    return {name: sorted(kinds) for name, kinds in seen.items()}


def _kind(values: torch.Tensor) -> str:
    """The precision of a tensor's values: an fp32 tensor that was rounded to bf16 counts as bf16."""
    rounded = torch.equal(values, values.bfloat16().to(values.dtype))
    return f"{values.dtype} of bf16 values" if rounded else str(values.dtype)


def main():
    cases = next(Path(argument) for argument in sys.argv[1:] if argument.endswith(".json"))
    for arguments in json.loads(cases.read_text()):
        seen = train(arguments)
        output_dir = Path(arguments[arguments.index("--output_dir") + 1])
        if torch.distributed.get_rank() == 0:
            (output_dir / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    with leaving_in_order():
        main()
