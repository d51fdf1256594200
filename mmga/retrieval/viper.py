"""VIPeR's protocol: ten fixed halves of the persons, each in both directions."""

from __future__ import annotations

import numpy as np

SPLITS = 10


def half_of(persons: np.ndarray, split: int) -> np.ndarray:
    """Return the persons that a split tests, half of them (the rest is for training).

    Args:
        persons: the distinct pids, ascending.
        split: number of the split; it alone decides.
    """
    order = np.random.default_rng(split).permutation(persons)
    return np.sort(order[: len(persons) // 2])


def summary(values: list[float]) -> dict[str, float]:
    """Return mean and standard error of a figure over splits."""
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": float(np.mean(values)), "standard_error": spread}
