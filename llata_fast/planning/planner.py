"""The planner: what a training needs on given devices, for each stage, and which stage to use.

Its assumptions are in `ASSUMPTIONS`. Computation runs at a fixed share of the data sheet's peak rate, and never faster
than its kernels can be launched or its weights read. Communication takes `hardware.collective_seconds`, and is hidden
behind computation where DeepSpeed or DDP overlaps the two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..config import LlataConfig
from ..errors import InputError
from . import STAGES
from .hardware import DEVICES, Device, collective_seconds
from .stages import Messages, Weights, host_memory, memory, messages, weigh
from .trace import Trace, Workload, trace_step

GIB = 2**30

ASSUMPTIONS = {
    "utilisation": 0.4,
    "launch_seconds": 5e-6,
    "usable_memory": 0.94,
    # estimates within this share of each other count as equal, and the simpler stage wins
    "tie": 0.1,
    # CUDA's context, kernels and the buffers of collectives
    "gpu_runtime_bytes": 1.0 * GIB,
    # memory that PyTorch's allocator holds unused, as a share of activations
    "gpu_fragmentation": 0.08,
    # a CPU's matrix library, thread pools and data; not what glibc keeps of temporary buffers unless told to release
    # them (MALLOC_MMAP_THRESHOLD_=65536): without that, a rank of ZeRO-3 took 1.74 GiB instead of 1.22
    "cpu_runtime_bytes": 0.08 * GIB,
    # AdamW reads and writes the weight, the gradient and two states
    "optimizer_passes": 7,
    # GB/s of a host's memory, shared by the optimizers of its devices
    "host_memory_gbps": 200,
}


@dataclass(frozen=True)
class Request:
    """What to plan for."""

    gpu: str = "h100-80g"
    gpus: int = 1
    batch_size: int = 128
    """windows per optimizer step, over all GPUs"""
    micro_steps: int = 1
    """accumulation steps"""
    channels: int = 7
    precision: str = "bf16"
    """fp32 or bf16"""
    checkpointing: bool | None = None
    """None: only where a stage does not fit without it"""
    utilisation: float = ASSUMPTIONS["utilisation"]
    """share of the peak rate"""
    bandwidth_gbps: float = 0.0
    """measured GB/s of collectives; 0: from the data sheet"""

    def __post_init__(self):
        if self.gpu not in DEVICES:
            raise InputError(f"gpu {self.gpu!r} is not one of {', '.join(DEVICES)}")
        for name in ("gpus", "batch_size", "micro_steps", "channels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % (self.gpus * self.micro_steps):
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of {self.gpus} GPUs x {self.micro_steps} "
                "accumulation steps"
            )

    @property
    def micro_batch(self) -> int:
        return self.batch_size // (self.gpus * self.micro_steps)


class StagePlan(NamedTuple):
    """One stage, with or without activation checkpointing."""

    stage: str
    checkpointing: bool
    memory: dict[str, float]
    """bytes on one rank, by part"""
    messages: Messages
    wire_bytes: float
    """bytes that one rank sends per step"""
    flops: float
    """FLOPs of one step, summed over ranks"""
    compute_seconds: float
    exposed_seconds: float
    """seconds of communication, optimizer and offloading that are not hidden behind computation"""
    fits: bool
    host_bytes: float
    """bytes in host memory, for all ranks of a node; whether the host has that much is unknown"""

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds


class Plan(NamedTuple):
    """Every stage with and without checkpointing, and the recommended one."""

    request: Request
    config: LlataConfig
    weights: Weights
    stages: list[StagePlan]
    recommended: StagePlan | None

    @property
    def tokens(self) -> int:
        """Tokens that the temporal branch passes through the backbone in one step."""
        return self.request.batch_size * self.config.tokens_per_window(self.request.channels)


def make_plan(
    config: LlataConfig,
    request: Request,
    stages: tuple[str, ...] = STAGES,
    trace: Callable[[LlataConfig, Workload], Trace] = trace_step,
    weigh: Callable[[LlataConfig, str], Weights] = weigh,
) -> Plan:
    """Plan the training of `config` (with `backbone_config` filled in) for `request`; `stages` are simplest first.

    It recommends the simplest stage that fits and is within 10 % of the fastest, and checkpointing only if nothing else
    fits. ZeRO-3 is left out for a quantised base, which it cannot partition.

    Raises:
        InputError: no stage is possible: a quantised base needs a GPU and rules out ZeRO-3.
    """
    if config.base_precision != "auto":
        if request.gpu == "cpu":
            raise InputError(f"base_precision {config.base_precision} needs a CUDA device")
        stages = tuple(stage for stage in stages if not stage.startswith("zero3"))
        if not stages:
            raise InputError(f"base_precision {config.base_precision} cannot be partitioned by ZeRO-3")
    half = request.precision == "bf16"
    # under DDP bf16 means autocast; DeepSpeed casts the weights
    modes = {stage: ("autocast" if stage == "ddp" else "bf16") if half else "fp32" for stage in stages}
    weights = {mode: weigh(config, mode) for mode in set(modes.values())}
    choices = (False, True) if request.checkpointing is None else (request.checkpointing,)
    if not config.has_language_model:
        if request.checkpointing:
            raise InputError(f"gradient_checkpointing: ablation {config.ablation} has no backbone blocks to checkpoint")
        choices = (False,)
    traces = {
        (mode, checkpointing): trace(
            config, Workload(request.micro_batch, request.channels, mode, checkpointing, request.gpu != "cpu")
        )
        for mode in weights
        for checkpointing in choices
    }
    plans = [
        _plan_stage(stage, checkpointing, weights[mode], traces[mode, checkpointing], config, request)
        for checkpointing in choices
        for stage, mode in modes.items()
    ]
    return Plan(request, config, weights[modes[stages[0]]], plans, _recommend(plans, request.gpus))


def _recommend(plans: list[StagePlan], gpus: int) -> StagePlan | None:
    fitting = [plan for plan in plans if plan.fits]
    if gpus == 1:
        # one GPU cannot share its load; only host memory helps, unless another stage was requested
        fitting = [plan for plan in fitting if plan.stage == "ddp" or "offload" in plan.stage] or fitting
    # recompute blocks only if nothing fits without
    fitting = [plan for plan in fitting if not plan.checkpointing] or fitting
    if not fitting:
        return None
    fastest = min(plan.step_seconds for plan in fitting)
    return next(plan for plan in fitting if plan.step_seconds <= (1 + ASSUMPTIONS["tie"]) * fastest)


def _plan_stage(
    stage: str,
    checkpointing: bool,
    weights: Weights,
    trace: Trace,
    config: LlataConfig,
    request: Request,
) -> StagePlan:
    device, ranks = DEVICES[request.gpu], request.gpus
    moved = messages(stage, weights, ranks, request.micro_steps, checkpointing)
    growth = trace.step_bytes - trace.activation_bytes
    if request.micro_steps > 1:
        # gradients of earlier micro-steps exist from the start
        growth = weights.trained_bytes
    parts = memory(stage, weights, ranks, trace.activation_bytes, growth)
    kind = "cpu" if request.gpu == "cpu" else "gpu"
    parts["runtime"] = ASSUMPTIONS[f"{kind}_runtime_bytes"]
    if kind == "gpu":
        parts["runtime"] += ASSUMPTIONS["gpu_fragmentation"] * (parts["communication"] + parts["activations"])
    if config.has_text_branch:
        keys_values = 2 * config.num_prototypes * config.hidden_size * (4 if request.precision == "fp32" else 2)
        parts["prototype_keys_values"] = keys_values
        parts["activations"] -= keys_values
    if config.base_precision != "auto":
        # the backward pass dequantises one projection at a time to the compute precision
        parts["communication"] += weights.largest * (2 if request.precision == "bf16" else 4)
    compute = _compute_seconds(weights, trace, request, device)
    capacity = device.memory_gib * GIB / (ranks if kind == "cpu" else 1)
    return StagePlan(
        stage=stage,
        checkpointing=checkpointing,
        memory=parts,
        messages=moved,
        wire_bytes=moved.sent_bytes(ranks),
        flops=trace.flops * ranks * request.micro_steps,
        compute_seconds=compute,
        exposed_seconds=_exposed_seconds(stage, moved, weights, compute, request, device),
        fits=sum(parts.values()) <= ASSUMPTIONS["usable_memory"] * capacity,
        host_bytes=min(ranks, device.devices_per_node) * host_memory(stage, weights, ranks),
    )


def _compute_seconds(weights: Weights, trace: Trace, request: Request, device: Device) -> float:
    peak = device.fp32_tflops if request.precision == "fp32" else device.bf16_tflops
    arithmetic = trace.flops / (1e12 * peak * request.utilisation)
    launching = trace.operations * ASSUMPTIONS["launch_seconds"]
    # one read in the forward pass, one in the backward pass
    reading = 2 * (weights.frozen_bytes + weights.trained_bytes) / (1e9 * device.memory_gbps)
    return request.micro_steps * max(arithmetic, launching, reading)


def _exposed_seconds(
    stage: str, moved: Messages, weights: Weights, compute: float, request: Request, device: Device
) -> float:
    ranks = request.gpus
    measured = request.bandwidth_gbps
    total = collective_seconds(device, ranks, moved.sent_bytes(ranks), moved.calls, measured)
    after = collective_seconds(device, ranks, (ranks - 1) * moved.exposed_all_gather, 1, measured)
    # gradients appear in the backward pass, about two thirds of the time; ZeRO-3 prefetches in both passes
    window = compute if stage.startswith("zero3") else 2 / 3 * compute
    if "offload" in stage:
        window -= _offload_seconds(stage, weights, request, device)
    exposed = max(0.0, total - after - window) + after
    shard = weights.trained / (1 if stage == "ddp" else ranks)
    touched = 4 * ASSUMPTIONS["optimizer_passes"] * shard
    if "offload" not in stage:
        return exposed + touched / (1e9 * device.memory_gbps)
    local = min(ranks, device.devices_per_node)
    on_host = touched * local / (1e9 * ASSUMPTIONS["host_memory_gbps"])
    there_and_back = 2 * shard * weights.element_bytes / (1e9 * device.host_gbps)
    return exposed + on_host + there_and_back


def _offload_seconds(stage: str, weights: Weights, request: Request, device: Device) -> float:
    """Time to read a rank's shard of the weights from host memory for every gather, which cannot be hidden."""
    if stage != "zero3_offload":
        return 0.0
    whole = weights.frozen_bytes + weights.trained_bytes
    return request.micro_steps * 2 * whole / request.gpus / (1e9 * device.host_gbps)
