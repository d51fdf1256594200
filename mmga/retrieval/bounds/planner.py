"""Choose what tiles are made from, by counts of operations and of undecided pairs.

No clock is read: the same vectors give the same choice on machines with the same instructions. The
results are the same whatever is chosen; only time depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmga.ops.certified import device_multiplies_int8, int8_rate, multiplies_int8
from mmga.retrieval.bounds.approximation import WIDEST_BYTES, Approximator, Int8, Projection
from mmga.retrieval.features.vectors import VectorSet

CANDIDATES = (32, 64, 128, 256)
"""Numbers of directions that a projection may have."""
COUNTING, INTEGERS = 40, 3
"""Costs of a pair, in dimensions of a float32 product: comparing it with thresholds; and of a
dimension of a product of 16-bit integers, bound by the way of two vectors through the caches."""
# What listing a pair that a tile leaves undecided costs, and looking it up.
_LISTING = 1500
# What making floats of products of 8 bits costs.
_INT8_SCALING = 10
# Operations of a product that a coordinate costs to make (residuals and norms), and a dimension to
# be rounded to an integer.
_COORDINATE, _QUANTISED = 8, 16
# Dimensions below which products of 8 bits save nothing.
_FEWEST_BYTES = 32
SAMPLE = 1024
"""Rows from which directions are found."""
# The share of the plain product that finding directions may cost.
_FIT_SHARE = 0.02
# The share of the energy that the fewest directions may leave.
_FLAT = 0.35


def candidates(
    vectors: VectorSet, longest: float, operations: float, seed: int = 0
) -> list[Approximator]:
    """Return the approximations worth trying: projections on few directions, and 8 bits.

    Args:
        vectors: those that directions are found from.
        longest: the largest norm of these and of all others in the tiles.
        operations: of the products that approximations shall spare; finding directions takes a
            small share of them.
        seed: of the directions.
    """
    width = vectors.dimension
    choices: list[Approximator] = list(_projections(vectors, operations, seed))
    if takes_int8(width, vectors.device):
        choices.append(Int8(longest))
    return choices


def takes_int8(width: int, device: torch.device) -> bool:
    """Return whether products of 8 bits of features so wide are worth it on a device."""
    if device.type != "cpu":
        return width <= WIDEST_BYTES and device_multiplies_int8(device)
    return _FEWEST_BYTES <= width <= WIDEST_BYTES and multiplies_int8()


def product_cost(tiles: Approximator | None, width: int) -> float:
    """Return the cost of a pair's product in a tile, in dimensions of a float32 product."""
    if isinstance(tiles, Projection):
        return float(tiles.basis.shape[1])
    return width if tiles is None else width / int8_rate(width) + _INT8_SCALING


def undecided_cost(width: int) -> float:
    """Return the cost of a pair that a tile leaves undecided, in the same unit."""
    return float(_LISTING + INTEGERS * width)


def bearable_share(tiles: Approximator, width: int) -> float:
    """Return the share of its pairs that a tile may leave undecided and still spare time."""
    return (product_cost(None, width) - product_cost(tiles, width)) / undecided_cost(width)


def making_cost(tiles: Approximator, width: int) -> float:
    """Return the cost of approximating one vector, in dimensions of a float32 product."""
    if isinstance(tiles, Projection):
        return tiles.basis.shape[1] * (width + _COORDINATE / 2) + _QUANTISED / 2 * width
    return float(_QUANTISED * width)


def cheapest(
    choices: Sequence[Approximator], costs: Sequence[float], plain: float
) -> Approximator | None:
    """Return the choice of the lowest cost; None where `plain`, that of the features, is."""
    best, least = None, plain
    for tiles, cost in zip(choices, costs, strict=True):
        if cost < least:
            best, least = tiles, cost
    return best


def _projections(vectors: VectorSet, operations: float, seed: int) -> list[Projection]:
    """Return projections on as many directions as are worth a try; none where they hold too little.

    Args:
        vectors: of any number.
        operations: see `candidates`.
        seed: of the directions.
    """
    sample = min(SAMPLE, len(vectors))
    most = largest_projection(vectors.dimension, sample, _FIT_SHARE * operations)
    if most is None:
        return []
    rows = vectors.take(spread(len(vectors), sample))
    if vectors.metric == "cosine":
        rows = torch.nn.functional.normalize(rows)
    if is_flat(rows, seed):
        return []
    widest = Projection.of_sample(rows, max(k for k in CANDIDATES if k <= most), seed)
    return [widest.first(k) for k in CANDIDATES if k <= most]


def largest_projection(width: int, sample: int, operations: float) -> int | None:
    """Return the most directions worth finding, or None.

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
    """Return about how many operations `Projection.of_sample` takes."""
    return 8.0 * dimensions * sample * width


def is_flat(sample: Tensor, seed: int = 0) -> bool:
    """Return whether a few directions hold too little of features for any bound to decide pairs.

    Args:
        sample: float32 [n, D], shuffled or evenly spaced.
        seed: of the directions.
    """
    few, held_out = sample[0::4], sample[1::16]
    if len(few) < 2 * CANDIDATES[0]:
        return False
    basis = Projection.of_sample(few[:256], CANDIDATES[0], seed).basis
    left = held_out.square().sum() - (held_out @ basis).square().sum()
    return bool(left > _FLAT * held_out.square().sum())


def spread(count: int, wanted: int, phase: float = 0.0) -> Tensor:
    """Return at most `wanted` evenly spaced numbers below `count`, ascending."""
    wanted = min(count, wanted)
    return (
        (torch.arange(wanted, dtype=torch.float64, device="cpu") + phase) * (count / wanted)
    ).long()
