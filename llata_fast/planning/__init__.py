"""What a training takes before it runs: memory, wire, FLOPs, time."""

STAGES = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
"""Strategies, the simplest first."""
