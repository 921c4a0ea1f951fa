"""Counts of trained and frozen parameters."""

from torch import nn

from ..backbone.quantised import quantised_modules


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Trained and frozen parameters, by part of the model and in total."""
    counts: dict[str, int] = {}
    # 4-bit weights are packed two to a byte
    packed: dict[nn.Parameter, int] = {
        module.projection.weight: module.num_weights for module in quantised_modules(model)
    }
    for name, parameter in model.named_parameters():
        kind = "trained" if parameter.requires_grad else "frozen"
        # ZeRO-3 records the size of a parameter that it has partitioned
        size: int = packed.get(parameter, 0) or getattr(parameter, "ds_numel", parameter.numel())
        for part in (f"{name.split('.')[0]} {kind}", kind):
            counts[part] = counts.get(part, 0) + size
    return counts


def parameter_table(counts: dict[str, int]) -> str:
    """`parameter_counts` as text, one line per part of the model."""
    parts = dict.fromkeys(name.rpartition(" ")[0] for name in counts if " " in name)
    rows = [("parameters", "trained", "frozen")]
    for part, prefix in [*((part, f"{part} ") for part in parts), ("in all", "")]:
        trained, frozen = (f"{counts.get(f'{prefix}{kind}', 0):,}" for kind in ("trained", "frozen"))
        rows.append((part, trained, frozen))
    width = max(len(cell) for row in rows for cell in row)
    return "\n".join(f"{part:<{width}}  {trained:>{width}}  {frozen:>{width}}" for part, trained, frozen in rows)
