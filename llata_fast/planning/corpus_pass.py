"""The cost of pre-training on a given number of time steps, from the plan of one training step."""

from dataclasses import dataclass

from ..errors import InputError
from .planner import Plan


@dataclass(frozen=True)
class PretrainingCost:
    """One pass: every time step of every channel is forecast once."""

    corpus_steps: float
    windows: float
    tokens: float
    """tokens of the temporal branch in the backbone"""
    training_steps: float
    petaflops: float
    """10**15 operations, over all ranks"""
    hours: float | None
    """None if nothing fits"""
    gpu_hours: float | None


def pretraining_cost(plan: Plan, corpus_steps: float) -> PretrainingCost:
    """The cost of a pass over `corpus_steps` values, counted per channel; raises InputError below 1."""
    if not 1 <= corpus_steps < float("inf"):
        raise InputError(f"corpus_steps must be at least 1, got {corpus_steps}")
    request = plan.request
    windows = corpus_steps / (plan.config.prediction_length * request.channels)
    training_steps = windows / request.batch_size
    hours = None if plan.recommended is None else training_steps * plan.recommended.step_seconds / 3600
    best = plan.recommended or plan.stages[0]
    return PretrainingCost(
        corpus_steps=corpus_steps,
        windows=windows,
        tokens=training_steps * plan.tokens,
        training_steps=training_steps,
        petaflops=training_steps * best.flops / 1e15,
        hours=hours,
        gpu_hours=None if hours is None else hours * request.gpus,
    )


def in_words(cost: PretrainingCost) -> str:
    """The cost as one line of text."""
    time = "nothing fits" if cost.hours is None else f"{cost.hours:,.1f} hours, {cost.gpu_hours:,.0f} GPU hours"
    return (
        f"A pass over {cost.corpus_steps:,.0f} time steps of corpora: {cost.windows:,.0f} windows, "
        f"{cost.tokens:,.0f} tokens, {cost.training_steps:,.0f} training steps, {cost.petaflops:,.0f} PFLOP: {time}."
    )
