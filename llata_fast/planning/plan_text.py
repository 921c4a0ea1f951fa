"""A plan as text, as a table and as JSON, and the model configuration that it describes."""

from dataclasses import asdict

import pandas as pd
from transformers import AutoConfig

from ..backbone.families import published
from ..backbone.loading import read_backbone_config
from ..config import LlataConfig
from ..errors import InputError
from ..settings import ModelSettings
from .hardware import DEVICES
from .planner import ASSUMPTIONS, GIB, Plan, StagePlan

_PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "communication",
    "prototype_keys_values",
    "runtime",
)


def model_config(
    arguments: ModelSettings, num_channels: int | None = None, covariates: dict[str, list[int]] | None = None
) -> LlataConfig:
    """A model's configuration without the backbone's files: from the table of published configs, else from its source.

    `covariates` as in `LlataConfig`.

    Raises:
        InputError: the backbone cannot be found, or has fewer blocks.
    """
    known = published(arguments.backbone)
    if known is None:
        backbone = read_backbone_config(arguments.backbone, arguments.num_layers)
    else:
        layers = "n_layer" if known["model_type"] == "gpt2" else "num_hidden_layers"
        total = AutoConfig.for_model(**known).num_hidden_layers
        if arguments.num_layers > total:
            raise InputError(f"backbone {arguments.backbone!r} has {total} layers, not {arguments.num_layers}")
        backbone = AutoConfig.for_model(**known | {layers: arguments.num_layers})
    return LlataConfig(**asdict(arguments), backbone_config=backbone, num_channels=num_channels, covariates=covariates)


def as_json(plan: Plan) -> dict:
    """The plan as a JSON object; each stage uses checkpointing only if it does not fit without."""
    request = plan.request
    return {
        "backbone": plan.config.backbone,
        **asdict(request),
        "frozen_parameters": plan.weights.frozen,
        "trained_parameters": plan.weights.trained,
        "flops_per_step": plan.stages[0].flops,
        "tokens_per_step": plan.tokens,
        "stages": {stage: _stage_json(plan, variants) for stage, variants in _by_stage(plan).items()},
        "recommended": plan.recommended and plan.recommended.stage,
        "recommended_checkpointing": plan.recommended and plan.recommended.checkpointing,
        "reason": reason(plan),
        "assumptions": ASSUMPTIONS,
        "device": DEVICES[request.gpu]._asdict(),
    }


def _by_stage(plan: Plan) -> dict[str, list[StagePlan]]:
    stages: dict[str, list[StagePlan]] = {}
    for variant in plan.stages:
        stages.setdefault(variant.stage, []).append(variant)
    return stages


def _stage_json(plan: Plan, variants: list[StagePlan]) -> dict:
    return _variant_json(plan, variants[0]) | {
        "with_checkpointing": _variant_json(plan, variants[-1]) if variants[-1].checkpointing else None
    }


def _variant_json(plan: Plan, variant: StagePlan) -> dict:
    return {
        "memory_gib": variant.memory_bytes / GIB,
        "host_memory_gib": variant.host_bytes / GIB,
        "memory_by_part_gib": {part: variant.memory.get(part, 0.0) / GIB for part in _PARTS},
        "wire_bytes_per_step": variant.wire_bytes,
        "messages": {
            "all_reduce": variant.messages.all_reduce,
            "all_gather": variant.messages.all_gather,
            "reduce_scatter": variant.messages.reduce_scatter,
        },
        "flops_per_step": variant.flops,
        "step_seconds": variant.step_seconds,
        "compute_seconds": variant.compute_seconds,
        "exposed_seconds": variant.exposed_seconds,
        "windows_per_second": plan.request.batch_size / variant.step_seconds,
        "tokens_per_second": plan.tokens / variant.step_seconds,
        "fits": variant.fits,
    }


def as_text(plan: Plan) -> str:
    request, weights = plan.request, plan.weights
    each = f"{request.gpus} x {request.gpu}, {request.batch_size} windows of {request.channels} channels per step"
    rows = []
    for variant in plan.stages:
        rows.append(
            {"stage": variant.stage, "checkpointing": "yes" if variant.checkpointing else "no"}
            | {_SHORT[part]: f"{variant.memory.get(part, 0.0) / GIB:.2f}" for part in _PARTS}
            | {
                "GiB a GPU": f"{variant.memory_bytes / GIB:.2f}",
                "host GiB": f"{variant.host_bytes / GIB:.2f}",
                "fits": "yes" if variant.fits else "no",
                "GB sent": f"{variant.wire_bytes / 1e9:.3f}",
                "TFLOP": f"{variant.flops / 1e12:.2f}",
                "s/step": f"{variant.step_seconds:.4f}",
                "tokens/s": f"{plan.tokens / variant.step_seconds:,.0f}",
            }
        )
    return "\n".join(
        [
            f"{plan.config.backbone}, first {plan.config.num_layers} blocks; {each}, {request.precision}",
            f"{weights.frozen:,} parameters frozen, {weights.trained:,} trained",
            "",
            pd.DataFrame(rows).to_string(index=False),
            "",
            reason(plan),
            "Peak memory in GiB, by part; 'host GiB' is needed per node; 'GB sent' is by one GPU per step. "
            "Rates are from data sheets; "
            f"{ASSUMPTIONS['utilisation']:.0%} of the peak rate is assumed.",
        ]
    )


_SHORT = {part: part for part in _PARTS} | {"communication": "buffers", "prototype_keys_values": "prototypes' k, v"}


def reason(plan: Plan) -> str:
    """The recommendation in one sentence, with its reason."""
    best, request = plan.recommended, plan.request
    room = DEVICES[request.gpu].memory_gib
    if best is None:
        least = min(plan.stages, key=lambda variant: variant.memory_bytes)
        return (
            f"Nothing fits: {least.stage} needs least, {least.memory_bytes / GIB:.1f} GiB of {room:.1f} GiB per GPU; "
            "use more GPUs, fewer windows per GPU or fewer blocks."
        )
    what = f"Use {best.stage}{' with --gradient_checkpointing' if best.checkpointing else ''}"
    needs = f"{best.memory_bytes / GIB:.1f} of {room:.1f} GiB per GPU, {best.step_seconds:.3g} s per step"
    before = [variant for variant in plan.stages if variant.checkpointing == best.checkpointing]
    if request.gpus == 1:
        before = [item for item in before if item is best or item.stage == "ddp" or "offload" in item.stage]
    simpler = before[: before.index(best)]
    if not simpler:
        why = "it is the simplest that fits, and no other is clearly faster"
    elif all(not variant.fits for variant in simpler):
        why = f"the simpler {', '.join(variant.stage for variant in simpler)} would not fit"
    else:
        slower = [variant for variant in simpler if variant.fits]
        share = min(variant.step_seconds for variant in slower) / best.step_seconds - 1
        why = f"the simpler {', '.join(variant.stage for variant in slower)} would be {share:.0%} slower or more"
    if best.checkpointing:
        why += "; without checkpointing nothing fits" if plan.request.checkpointing is None else ""
    return f"{what}: {needs}; {why}."
