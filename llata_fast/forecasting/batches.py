"""Batch sizes of forecasts that bound memory for any number of channels and windows."""

from ..config import TOKENS_AT_ONCE, LlataConfig

VALUES_PER_BATCH = 2**23


def windows_at_once(config: LlataConfig, num_channels: int, horizon: int | None = None, paths: int = 1) -> int:
    """The most windows of C channels with at most TOKENS_AT_ONCE tokens and VALUES_PER_BATCH values, but at least one.

    `horizon` defaults to the trained one; a window that continues as several `paths` counts that many times.
    """
    tokens = config.tokens_per_window(num_channels)
    values = num_channels * max(config.context_length, horizon or config.prediction_length)
    return max(1, min(TOKENS_AT_ONCE // (tokens * paths), VALUES_PER_BATCH // (values * paths)))
