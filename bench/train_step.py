"""Time a training step and a forecast of the reference and of our model, side by side in one process.

    python bench/train_step.py --device cpu --providers reference,llata_fast

First both must give the same forecasts and loss in fp32 on the same weights. Then the providers take turns, call by
call, so that slow phases of the machine affect both; medians are compared. Peak memory is the growth after the imports,
in a separate process for each provider. The last line on stdout is one JSON object; ratios are reference / ours for
time and ours / reference for memory. The baseline is the reference in fp32, or with `--yardstick compiled` under bf16
autocast and torch.compile.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import copy
import functools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reference import ReferenceModel, backbone_config, reference_loss
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedConfig

from llata_fast.backbone.twin import store_frozen
from llata_fast.reference_checkpoint import reference_weights
from llata_fast.config import LlataConfig
from llata_fast.modeling import LlataForPrediction
from llata_fast.training.arguments import has_bf16
from llata_fast.planning.flops import count_flops

AGREEMENT = 1e-4
LOSS = "l1"
CONTEXT, HORIZON, PROTOTYPES = 96, 96, 500
REPEATS = {"train": 7, "inference": 11}


class Provider:
    """One implementation of the model: `train` is an optimizer step, `inference` a forecast."""

    def __init__(self, options: argparse.Namespace, name: str, precision: str, compiled: bool):
        self.device, self.bf16, self.reference = options.device, precision == "bf16", name == "reference"
        torch.manual_seed(0)
        model = build_reference(options) if self.reference else build_ours(options)
        self.model = model.to(self.device).train()
        if self.bf16 and not self.reference:
            store_frozen(self.model.backbone, torch.bfloat16)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=not self.reference)
        mode = "reduce-overhead" if self.device == "cuda" else "default"
        self.loss = torch.compile(self._loss, mode=mode) if compiled else self._loss
        self.predict = torch.compile(self._predict, mode=mode) if compiled else self._predict

    @functools.cached_property
    def frozen(self) -> torch.nn.Module:
        """The model used for forecasts: ours merged, the reference unchanged."""
        if self.reference:
            return self.model
        merged = copy.deepcopy(self.model).merge().requires_grad_(False)
        if self.bf16:
            store_frozen(merged, torch.bfloat16)
        return merged

    def _loss(self, past: Tensor, future: Tensor) -> Tensor:
        if self.reference:
            return reference_loss(self.model(past), future, LOSS)
        return self.model(past, future).loss

    def _predict(self, past: Tensor) -> Tensor:
        output = self.frozen(past)
        return output.time if self.reference else output.prediction_outputs

    def train(self, past: Tensor, future: Tensor):
        self.model.train()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(past, future)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def inference(self, past: Tensor, future: Tensor) -> Tensor:
        self.frozen.eval()
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.predict(past)


def build_reference(options: argparse.Namespace) -> ReferenceModel:
    prototypes = torch.randn(num_prototypes(options), options.hidden_size) * 0.1
    return ReferenceModel(
        prototypes,
        backbone_of(options),
        context_length=CONTEXT,
        prediction_length=HORIZON,
        dropout=options.dropout,
    )


def build_ours(options: argparse.Namespace) -> LlataForPrediction:
    """Our model of the same size, with random weights, since values do not affect the time."""
    return LlataForPrediction(LlataConfig(backbone_of(options), **config_fields(options)))


def backbone_of(options: argparse.Namespace) -> PreTrainedConfig:
    return backbone_config(options.backbone, options.hidden_size, options.num_layers, options.dropout)


def num_prototypes(options: argparse.Namespace) -> int:
    return min(PROTOTYPES, options.hidden_size - 1)


def config_fields(options: argparse.Namespace) -> dict:
    return {
        "num_layers": options.num_layers,
        "context_length": CONTEXT,
        "prediction_length": HORIZON,
        "num_prototypes": num_prototypes(options),
        "num_heads": options.hidden_size // 64,
        "task_loss": LOSS,
        "consistency_loss": LOSS,
        "alignment_loss": LOSS,
        "dropout": options.dropout,
        "lora_dropout": options.dropout,
        "backbone_pass": options.backbone_pass,
    }


def batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (options.batch, CONTEXT + HORIZON, options.channels)
    series = torch.randn(shape, generator=generator).to(options.device)
    return series[:, :CONTEXT], series[:, CONTEXT:]


def check_same_outputs(options: argparse.Namespace):
    """Check that forecast and loss are the same on the same weights, in fp32 without dropout."""
    exact = argparse.Namespace(**vars(options) | {"dropout": 0.0, "batch": min(options.batch, 8)})
    past, future = batch(exact)
    theirs = build_reference(exact)
    ours = build_ours(exact)
    # not strict: two_pass lists the shared weights twice, the reference once
    ours.load_state_dict(reference_weights(theirs.state_dict(), theirs.prototypes), strict=False)
    theirs, ours = theirs.to(options.device).train(), ours.to(options.device).train()
    published, mine = theirs(past), ours(past, future)
    pairs = {
        "forecast": (mine.prediction_outputs, published.time),
        "text forecast": (mine.text_outputs, published.text),
        "loss": (mine.loss, reference_loss(published, future, LOSS)),
        "merged forecast": (ours.merge()(past).prediction_outputs, published.time),
    }
    for name, (value, expected) in pairs.items():
        error = ((value - expected).abs().max() / expected.abs().max()).item()
        if not error < AGREEMENT:
            raise SystemExit(f"the {name} differs from the reference's by {error:.1e}, relative: nothing was timed")


def seconds(call: Callable, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable], repeats: int, device: str, label: str) -> dict[str, float]:
    """Median seconds of each call, timed in turns after two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(repeats + 2), desc=label, leave=False):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def matmul_rate(precision: str, device: str) -> float:
    """FLOP/s of a square matrix product on random data, taken as 100 % utilisation."""
    size, dtype = (8192 if device == "cuda" else 1536), (torch.bfloat16 if precision == "bf16" else torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    taken = [seconds(lambda: left @ right, device) for _ in range(7)]
    return 2 * size**3 / min(taken)


def peak_memory(name: str, precision: str, compiled: bool) -> float:
    """Memory in MiB that three training steps need beyond the imports, measured in a separate process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", name, "--precisions", precision]
    command += ["--compile", "only" if compiled else "no"]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def measure_own_memory(options: argparse.Namespace):
    before = process_memory("VmRSS")
    provider = Provider(options, options.memory_of, options.precisions[0], options.compile == "only")
    past, future = batch(options)
    for _ in range(3):
        provider.train(past, future)
    if options.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print((process_memory("VmHWM") - before) / 2**20)


def process_memory(name: str) -> int:
    """Memory of this process in bytes as Linux reports it: VmRSS is the current value, VmHWM the peak.

    getrusage's ru_maxrss would start at the parent process's memory at the time of the fork.
    """
    kib = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib[1]) * 1024


def measure(options: argparse.Namespace, precision: str, compiled: bool) -> dict:
    """One row: our provider with this precision and compilation, against the baseline."""
    yardstick = ("bf16", True) if options.yardstick == "compiled" else ("fp32", False)
    settings = {"reference": yardstick, "llata_fast": (precision, compiled)}
    providers = {name: Provider(options, name, *settings[name]) for name in options.providers}
    past, future = batch(options)
    row = {"batch": options.batch, "channels": options.channels, "precision": precision, "compile": compiled}
    memory = {name: peak_memory(name, *settings[name]) for name in providers}
    for kind, repeats in REPEATS.items():
        calls = {name: functools.partial(getattr(provider, kind), past, future) for name, provider in providers.items()}
        taken = interleaved(calls, repeats, options.device, f"{kind}, {precision}")
        for name, provider in providers.items():
            # count without compilation, which hides the operations
            provider.loss, provider.predict = provider._loss, provider._predict
            flops = count_flops(calls[name])
            row |= {
                f"{name}_{kind}_ms": 1e3 * taken[name],
                f"{name}_{kind}_windows_per_s": options.batch / taken[name],
                f"{name}_{kind}_flops": flops,
                f"{name}_{kind}_utilisation": flops / taken[name] / matmul_rate(settings[name][0], options.device),
            }
        if len(taken) == 2:
            row[f"{kind}_ratio"] = taken["reference"] / taken["llata_fast"]
    row |= {f"{name}_peak_mib": mib for name, mib in memory.items()}
    if len(memory) == 2:
        row["memory_ratio"] = memory["llata_fast"] / memory["reference"]
    return row


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    names = ["reference", "llata_fast"]
    parser.add_argument("--providers", type=lambda text: text.split(","), default=names, help=",".join(names))
    parser.add_argument(
        "--precisions",
        type=lambda text: text.split(","),
        help="fp32,bf16; default both, but no bf16 where the device would emulate it (a step takes minutes)",
    )
    parser.add_argument(
        "--compile", choices=("no", "also", "only"), default="no", help="torch.compile for our provider"
    )
    parser.add_argument("--yardstick", choices=("published", "compiled"), default="published")
    parser.add_argument("--batch", type=int, default=32, help="windows")
    parser.add_argument("--channels", type=int, default=7)
    parser.add_argument("--backbone", choices=("gpt2", "llama"), default="gpt2", help="its proportions")
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--num_layers", type=int, default=6)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--backbone_pass", choices=("twin", "two_pass"), default="twin")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.left_out = {}
    if options.precisions is None:
        options.precisions = ["fp32", "bf16"]
        if not has_bf16(options.device == "cpu"):
            options.precisions.remove("bf16")
            options.left_out["bf16"] = (
                f"this {options.device} has no bf16 instructions: --precisions bf16 times emulation"
            )
    if unknown := set(options.providers) - set(names):
        parser.error(f"unknown provider {min(unknown)}: choose from {', '.join(names)}")
    return options


def main():
    options = parse_options()
    if options.memory_of:
        return measure_own_memory(options)
    if len(options.providers) == 2:
        check_same_outputs(options)
    compiled = {"no": [False], "also": [False, True], "only": [True]}[options.compile]
    rows = [measure(options, precision, flag) for precision in options.precisions for flag in compiled]
    for row in rows:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    for name, reason in options.left_out.items():
        print(f"{name} left out: {reason}")
    facts = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**facts, "left_out": options.left_out, "rows": rows}))


if __name__ == "__main__":
    main()
