"""Concatenated ranges of whole numbers: the rows of items, or the cuts of their windows."""

import numpy as np


def ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], ..., first[0] + counts[0] - 1, first[1], ..."""
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
