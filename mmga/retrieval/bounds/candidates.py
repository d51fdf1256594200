"""Approximations worth trying: directions found in a sample of the features, and 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmga.ops.certified import multiplies_bytes
from mmga.retrieval.bounds.approximation import WIDEST_BYTES, Bytes, Subspace

CANDIDATES = (32, 64, 128, 256)
"""Numbers of directions that a level may have."""
# Dimensions below which products of 8 bits save nothing.
_FEWEST_BYTES = 32
# Rows from which directions are found.
_SAMPLE = 1024
# The share of the plain product that finding directions may cost.
_FIT_SHARE = 0.02
# The share of the energy that the fewest directions may leave.
_FLAT = 0.35


def directions_of(
    take: Callable[[Tensor], Tensor],
    count: int,
    width: int,
    metric: str,
    operations: float,
    seed: int = 0,
) -> Subspace | None:
    """Return directions that hold most of features, or None where they hold too little.

    Args:
        take: returns some of the features, float32 [n, D], given their numbers.
        count: of the features.
        width: D.
        metric: cosine or euclidean.
        operations: of the products that directions shall spare; finding them takes a small share.
        seed: of the directions.
    """
    sample = min(_SAMPLE, count)
    most = largest_level(width, sample, _FIT_SHARE * operations)
    if most is None:
        return None
    rows = take(spread(count, sample))
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows)
    if is_flat(rows, seed):
        return None
    return Subspace.of_sample(rows, max(k for k in CANDIDATES if k <= most), seed)


def narrowed(subspace: Subspace | None) -> list[Subspace]:
    """Return the subspaces of as many directions as are worth a look; none of None."""
    if subspace is None:
        return []
    most = subspace.directions.shape[1]
    return [subspace.first(k) for k in CANDIDATES if k <= most]


def bytes_for(width: int, longest: float) -> list[Bytes]:
    """Return features of 8 bits where their products are worth a look, else nothing.

    Args:
        width: D.
        longest: the largest norm of any feature.
    """
    worth = _FEWEST_BYTES <= width <= WIDEST_BYTES and multiplies_bytes()
    return [Bytes(longest)] if worth else []


def largest_level(width: int, sample: int, operations: float) -> int | None:
    """Return the most directions worth looking for, or None.

    Args:
        width: D.
        sample: rows that they are found from.
        operations: what finding them may cost.
    """
    most = min(CANDIDATES[-1], width // 8, sample // 4)
    while most >= CANDIDATES[1] and fit_operations(most, sample, width) > operations:
        most //= 2
    return most if most >= CANDIDATES[1] else None


def fit_operations(dimensions: int, sample: int, width: int) -> float:
    """Return about how many operations `Subspace.of_sample` takes."""
    return 8.0 * dimensions * sample * width


def is_flat(sample: Tensor, seed: int = 0) -> bool:
    """Return whether a few directions hold too little of features for any bound to settle pairs.

    Args:
        sample: float32 [n, D], shuffled or evenly spaced.
        seed: of the directions.
    """
    few, held_out = sample[0::4], sample[1::16]
    if len(few) < 2 * CANDIDATES[0]:
        return False
    basis = Subspace.of_sample(few[:256], CANDIDATES[0], seed).directions
    left = held_out.square().sum() - (held_out @ basis).square().sum()
    return bool(left > _FLAT * held_out.square().sum())


def spread(count: int, wanted: int, phase: float = 0.0) -> Tensor:
    """Return at most `wanted` evenly spaced numbers below `count`, ascending."""
    wanted = min(count, wanted)
    return ((torch.arange(wanted, dtype=torch.float64) + phase) * (count / wanted)).long()
