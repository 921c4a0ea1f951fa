"""Count the kernels that a training step and a forecast launch, by part of the model and by operation, without a GPU.

    python bench/launches.py                        # GPT-2, 6 layers, C 7, bf16 autocast, no dropout
    python bench/launches.py --backbone llama --write DIR
    python bench/launches.py --inductor             # also Inductor's code for the step; takes minutes

The model runs eagerly on fake tensors (shapes without values), on the code paths of CUDA tensors; our ops run their
launchers, whose kernels are counted instead of launched. An operation that returns a view launches nothing, any other
operation one kernel, except for those in `KERNELS`. For the host's time per launch, run profile_step.py on a GPU. The
last line on stdout is one JSON object; --write saves DIR/launches.csv.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import collections
import contextlib
import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from train_step import batch, build_ours
from train_step import parse_options as parse_model

from llata_fast.backbone.twin import store_frozen
from llata_fast.kernels import _launch, configs, providers
from llata_fast.kernels._operation import Operation
from llata_fast.modeling import LlataForPrediction
from llata_fast.planning.trace import as_on_gpu, make_fake

TARGET = "sm_90"
PHASES = ("forward", "backward", "optimizer", "forecast")
# launches by (phase, part, operation)
Counts = dict[tuple[str, str, str], int]

# operations that are not one kernel on a CUDA device, from PyTorch's sources (aten/src/ATen/native/cuda)
KERNELS = {
    # only allocate memory
    **dict.fromkeys(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"), 0),
    # dx; the sums over rows for weight and bias
    "native_layer_norm_backward": 2,
    # dout . out; the gradients; the cast of dq
    "_scaled_dot_product_flash_attention_for_cpu_backward": 3,
    # zeros; the copy of the slice into them
    **dict.fromkeys(("slice_backward", "select_backward"), 2),
    # zeros; the sum of the rows
    "embedding_dense_backward": 2,
}
# torch's multi-tensor kernels: elements per block, blocks per launch, tensors per launch by number of tensor lists
CHUNK, BLOCKS, TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
# the first pattern that matches a module's path names the part
PARTS = {
    r"^embedding": "patch embedding",
    r"^encoder": "encoder",
    r"^cross_attention": "cross attention",
    r"^alignment": "alignment loss",
    r"^head": "head",
    r"^backbone\.positions": "positions",
    r"\.base$": "frozen projections",
    r"(c_attn|q_proj|k_proj|v_proj)": "LoRA",
    r"(ln_\w|norm)$": "norms",
    r"\.(attn|self_attn)\.(c_proj|o_proj)": "frozen projections",
    r"\.(attn|self_attn)": "attention",
    r"\.mlp\.\w*act": "activation",
    r"\.mlp": "frozen projections",
    r"^backbone": "residual stream",
}
# parts for launches outside any module
PARTS_APART = {"backward": "gradients added up", "optimizer": "optimizer"}


class CountLaunches(TorchDispatchMode):
    """Counts launches in its context by (phase, part, operation); a backward counts for its forward's part."""

    def __init__(self):
        super().__init__()
        self.counts: Counts = collections.Counter()
        self.phase, self.tracker, self.part_of_node = "", ModuleTracker(), {}

    def count(self, phase: str, call: Callable[[], object]):
        self.phase = phase
        with self.tracker, self:
            call()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        name = function._schema.name.partition("::")[2]
        if function.namespace == "llata_fast":
            # run our launcher and count its kernels and other operations
            with self:
                launcher_of(function)(*args, **kwargs)
        else:
            self.counts[self.phase, self.part(), name] += num_kernels(name, function, args, kwargs, output)
        return output

    def note(self, kernel: str):
        self.counts[self.phase, self.part(), kernel] += 1

    def part(self) -> str:
        if (node := torch._C._current_autograd_node()) is not None:
            return self.part_of_node.get(node._sequence_nr(), PARTS_APART["backward"])
        if self.phase in PARTS_APART:
            return PARTS_APART[self.phase]
        # autograd has just created the node that will run this operation's backward
        part = self.part_of_node[torch.autograd._get_sequence_nr() - 1] = self.part_of_module()
        return part

    def part_of_module(self) -> str:
        paths = [path.partition(".")[2] for path in self.tracker.parents if "." in path]
        path = max(paths, key=lambda path: path.count("."), default="")
        return next((part for pattern, part in PARTS.items() if re.search(pattern, path)), "forecast and losses")


def num_kernels(name: str, function, args, kwargs, output) -> int:
    if name.startswith(("_foreach", "_fused")):
        lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and torch.is_tensor(arg[0])]
        return multi_tensor_launches(lists)
    if name in KERNELS:
        return KERNELS[name]
    if function._schema.is_mutable:
        return 1
    given, made = ({leaf.untyped_storage() for leaf in tree_leaves(tree) if torch.is_tensor(leaf)} for tree in (
        (args, kwargs), output
    ))  # fmt: skip
    return int(bool(made - given))


def multi_tensor_launches(lists: list[list[Tensor]]) -> int:
    """Launches of a multi-tensor kernel over `lists`, which all have the same number of tensors."""
    limit, launches, tensors, blocks = TENSORS[min(len(lists), 5)], 0, 0, 0
    for tensor in lists[0]:
        tensors += 1
        for _ in range(math.ceil(tensor.numel() / CHUNK)):
            blocks += 1
            if blocks == BLOCKS:
                launches, tensors, blocks = launches + 1, 1, 0
        if tensors == limit:
            launches, tensors, blocks = launches + 1, 0, 0
    return launches + bool(blocks)


def kernel_modules() -> list:
    """The modules of the package `kernels`."""
    return [module for name, module in sys.modules.items() if name.startswith("llata_fast.kernels.")]


def launcher_of(function) -> Callable:
    """The launcher behind one of our registered ops."""
    for module in kernel_modules():
        for value in vars(module).values():
            if isinstance(value, Operation) and value.registered is function:
                return value.launcher
    raise LookupError(f"no launcher of {function}")


class _Recorded:
    """Stands in for a Triton kernel: `kernel[grid](...)` records its name."""

    def __init__(self, name: str, note: Callable[[str], None]):
        self.name, self.note = name, note

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.note(self.name)


@contextlib.contextmanager
def recorded_kernels(note: Callable[[str], None]) -> Iterator[None]:
    """Context in which Triton kernels are not launched: `note` gets their names, as on a GPU of type `TARGET`."""
    with contextlib.ExitStack() as stack:
        for module in kernel_modules():
            for name, value in list(vars(module).items()):
                if re.fullmatch(r"_\w+_kernel", name) and getattr(value, "__module__", "") == module.__name__:
                    label = module.__name__.rpartition(".")[2].lstrip("_") + name.removesuffix("_kernel")
                    stack.enter_context(mock.patch.object(module, name, _Recorded(label, note)))
        for tables in (configs, providers):
            stack.enter_context(mock.patch.object(tables, "target_name", lambda device: TARGET))
        stack.enter_context(mock.patch.object(_launch, "DEFAULT_MULTIPROCESSORS", 132))
        yield


@contextlib.contextmanager
def _fp32_norms() -> Iterator[None]:
    """Compute `layer_norm` in fp32 as CUDA's autocast does; the CPU's keeps the input's dtype."""
    layer_norm = F.layer_norm

    def in_fp32(x, shape, weight=None, bias=None, eps=1e-5):
        return layer_norm(x.float(), shape, weight, bias, eps)

    with mock.patch.object(F, "layer_norm", in_fp32):
        yield


def meta_model(options: argparse.Namespace, merged: bool) -> LlataForPrediction:
    with torch.device("meta"):
        model = build_ours(options).train()
    if merged:
        model.merge().requires_grad_(False)
    store_frozen(model if merged else model.backbone, torch.bfloat16)
    return model


def count(options: argparse.Namespace) -> Counts:
    """Launches of a training step (forward, backward and optimizer) and of a forecast."""
    autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    kept, shapes = {}, [part.shape for part in batch(options)]
    model, merged = (meta_model(options, merged) for merged in (False, True))
    counter = CountLaunches()
    with FakeTensorMode(), recorded_kernels(counter.note), as_on_gpu(), _fp32_norms():
        make_fake(model)
        make_fake(merged)
        past, future = map(torch.zeros, shapes)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)

        def forward():
            with autocast():
                kept["loss"] = model(past, future).loss

        def forecast():
            with torch.no_grad(), autocast():
                merged(past)

        counter.count("forward", forward)
        counter.count("backward", lambda: kept["loss"].backward())
        # the first step creates the optimizer's state
        optimizer.step()
        counter.count("optimizer", optimizer.step)
        counter.count("forecast", forecast)
    return counter.counts


def inductor_totals(options: argparse.Namespace) -> dict[str, int]:
    """Launches of forward and backward in Inductor's generated code; our ops and library calls count as in eager mode.

    The code is generated for a CPU but not compiled. Each of its kernels counts as one GPU kernel, since fusion follows
    the same rules there.
    """
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.graph import GraphLowering

    sources: list[str] = []
    noted: list[str] = []
    totals = {}
    model = build_ours(options).train()
    store_frozen(model.backbone, torch.bfloat16)
    past, future = batch(argparse.Namespace(**vars(options) | {"batch": 2}))
    nothing = lambda self, *args, **kwargs: lambda *tensors: None
    with (
        mock.patch.object(GraphLowering, "save_output_code", sources.append),
        mock.patch.multiple(AsyncCompile, cpp=nothing, cpp_pybinding=nothing),
        config.patch(fx_graph_cache=False),
        recorded_kernels(noted.append),
        as_on_gpu(),
    ):
        step = torch.compile(lambda past, future: model(past, future).loss, fullgraph=True, dynamic=False)
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(past, future)
        totals["forward"] = code_launches(sources) + len(noted)
        sources.clear(), noted.clear()
        loss.backward()
        totals["backward"] = code_launches(sources) + len(noted)
    return totals


def code_launches(sources: list[str]) -> int:
    """Launches in generated code, without those of our ops."""
    bodies = "\n".join(source[source.index("def call(") :] for source in sources)
    fused = len(re.findall(r"\bcpp_fused\w*\(", bodies))
    names = re.findall(r"\bextern_kernels\.(\w+)\(|torch\.ops\.aten\.(\w+)\.\w+\(", bodies)
    return fused + sum(KERNELS.get(first or second, 1) for first, second in names)


def by_phase(counts: Counts, column: int) -> dict[str, dict[str, int]]:
    """Launches in every phase by part (column 1) or operation (column 2), the most frequent first."""
    table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for key, number in counts.items():
        table[key[column]][key[0]] += number
    rows = sorted(table.items(), key=lambda item: -item[1].total())
    return {name: numbers for name, numbers in rows if numbers.total()}


def markdown(counts: Counts, column: int, heading: str) -> str:
    lines = [f"| {heading} | {' | '.join(PHASES)} |", f"| - |{' - |' * len(PHASES)}"]
    rows = by_phase(counts, column) | {"all": totals(counts)}
    lines += [f"| {name} | {' | '.join(str(numbers[phase]) for phase in PHASES)} |" for name, numbers in rows.items()]
    return "\n".join(lines) + "\n"


def totals(counts: Counts) -> dict[str, int]:
    return {phase: sum(number for key, number in counts.items() if key[0] == phase) for phase in PHASES}


def write(counts: Counts, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["phase", "part", "operation", "launches"])
        writer.writerows([*key, number] for key, number in sorted(counts.items()) if number)


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--write", type=Path, metavar="DIR", help="folder for launches.csv")
    parser.add_argument("--inductor", action="store_true", help="also count launches under torch.compile")
    own, rest = parser.parse_known_args(argv)
    # the model's options: --batch, --channels, --backbone, --hidden_size, --num_layers, --dropout, --backbone_pass
    model = parse_model(["--device", "cpu", "--batch", "256", "--dropout", "0", *rest])
    return argparse.Namespace(**vars(model) | vars(own))


def main():
    options = parse_options()
    counts = count(options)
    print(markdown(counts, 1, "part"))
    print(markdown(counts, 2, "operation"))
    if options.write:
        write(counts, options.write / "launches.csv")
    sums = totals(counts)
    compiled = {"inductor": inductor_totals(options)} if options.inductor else {}
    print(json.dumps({"training_step": sums["forward"] + sums["backward"], **sums, **compiled}))


if __name__ == "__main__":
    main()
