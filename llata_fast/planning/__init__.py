"""What a training will need before it runs: memory, communication, FLOPs and time."""

STAGES = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
"""Strategies, simplest first."""
