"""Norms, keys and distances of pairs, and distances of part features.

Ranking compares keys (squared Euclidean distance; 1 - cosine); users get the Euclidean distance
itself and 1 - cosine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmga.common.arrays import as_tensor
from mmga.ops import reference
from mmga.ops._library import define, refuse_gradient
from mmga.ops.precision import float32_products

METRICS = ("cosine", "euclidean")
SMALLEST, LARGEST = 2.0**-50, 2.0**50
"""Norms between which products of two rows keep the digits of float32."""
LEAST_NORM, LARGEST_NORM = 2.0**-40, 2.0**40
"""Norms between which rows are not scaled where the metric is the cosine."""
GIVEN = 0
"""Number of the metric of tiles that hold keys already."""


def metric_number(metric: str) -> int:
    """Return the index of a metric in `reference.METRICS`.

    Raises:
        ValueError: it is neither cosine nor euclidean.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be {' or '.join(METRICS)}, got {metric!r}")
    return reference.METRICS.index(metric)


def squared_norms(x: Tensor) -> Tensor:
    """Return the squared norm of every row (`reference.squared_norms`).

    Returns:
        float64 [N], the same on every device; infinite or NaN exactly where a value of the row is.

    Raises:
        TypeError: `x` is neither float16 nor float32.
        ValueError: `x` is no matrix, or a gradient is required.
    """
    if x.dtype not in (torch.float16, torch.float32):
        raise TypeError(f"x must be float16 or float32, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"x must be [N, D], got {list(x.shape)}")
    refuse_gradient("squared_norms", x)
    norms: Tensor = _SQUARED_NORMS(x)
    return norms


def scaled_rows(x: Tensor, exponents: Tensor) -> Tensor:
    """Return rows [N, ...] times powers of two, exact as far as float32 reaches.

    Args:
        x: float32 or float16.
        exponents: int64 [N], or [N, P] for parts.
    """
    factors = np.ldexp(1.0, exponents.cpu().numpy()[..., None])
    return (x.double() * torch.from_numpy(factors).to(x.device)).to(x.dtype)


def unit_exponents(norms: Tensor) -> Tensor:
    """Return int64 exponents of two that bring rows of these squared norms near length 1."""
    return -(norms.frexp().exponent.long() // 2)


def unit_rows(x: Tensor) -> Tensor:
    """Return float32 rows [..., D] divided by their norms; those of zeros stay zeros.

    Rows that are so short or long that float32 loses their squares are scaled by a power of two
    first, so that powers of two change no bit of the result.
    """
    rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
    norms = squared_norms(rows)
    odd = (norms > 0) & norms.isfinite() & ((norms < 2.0**-60) | (norms > LARGEST**2))
    if bool(odd.any()):
        rows = scaled_rows(rows, torch.where(odd, unit_exponents(norms), 0))
    return torch.nn.functional.normalize(rows, dim=1).view(x.shape)


def key_terms(norms: Tensor, metric: str) -> Tensor:
    """Return the contribution of each row or column to its keys (see `reference.ranking_keys`).

    Args:
        norms: squared norms, float64 [N].
        metric: cosine or euclidean.

    Returns:
        float32 [N]: 1 / norm, 0 for a zero vector, or the squared norm.
    """
    if metric_number(metric) == 2:
        return norms.to(torch.float32)
    return torch.where(norms > 0, norms.rsqrt(), 0.0).to(torch.float32)


def exact_sqrt(x: Tensor) -> Tensor:
    """Return correctly rounded square roots of float64 numbers [N], which torch's are not.

    In builds of torch with MKL one in a hundred is off by a unit in the last place; NumPy's are the
    processor's own.
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def exact_term(norms: Tensor, metric: str) -> Tensor:
    """Return the terms of exact keys from squared norms: the norms (cosine) or these themselves."""
    return exact_sqrt(norms) if metric == "cosine" else norms


def pair_sums(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, metric: str) -> Tensor:
    """Return inner products or squared distances of pairs, float64 [P] (`reference.pair_sums`)."""
    refuse_gradient("pair_sums", x, y)
    sums: Tensor = _PAIR_SUMS(x, y, rows.contiguous(), columns.contiguous(), metric_number(metric))
    return sums


def exact_keys(sums: Tensor, own: Tensor, other: Tensor, metric: str) -> Tensor:
    """Return ranking keys from `pair_sums` and the squared norms of both rows, all float64 [P].

    The keys are 1 - <x, y> / (|x| |y|), 1 for a zero vector; or the squared distance.
    """
    if metric == "euclidean":
        return sums
    norms = exact_sqrt(own) * exact_sqrt(other)
    return torch.where(norms > 0, 1 - sums / norms, 1.0)


@float32_products()
def pairwise_distance(x: Tensor, y: Tensor, metric: str = "cosine") -> Tensor:
    """Return the distance of every row of `x` to every row of `y`.

    Args:
        x: float16 or float32 [N, D].
        y: float16 or float32 [M, D].
        metric: ``"cosine"`` gives 1 - cosine (1 for a zero vector), ``"euclidean"`` the Euclidean
            distance (not squared).

    Returns:
        float32 [N, M].

    Raises:
        TypeError: another dtype.
        ValueError: shapes that do not fit, an unknown metric, or a gradient is required.
    """
    number = metric_number(metric)
    refuse_gradient("pairwise_distance", *(side for side in (x, y) if isinstance(side, Tensor)))
    x, y = as_tensor("x", x), as_tensor("y", y)
    if x.dim() == 2 and y.dim() == 2 and x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have equal widths, got {x.shape[1]} and {y.shape[1]}")
    norms = [squared_norms(side) for side in (x, y)]
    x, y = x.to(torch.float32), y.to(torch.float32)
    shift = 0
    if metric == "cosine":
        x, y = (_near_one(side, own) for side, own in zip((x, y), norms, strict=True))
    else:
        largest = torch.cat([own[own.isfinite()] for own in norms] + [norms[0].new_zeros(1)]).max()
        if not SMALLEST <= largest.sqrt() <= LARGEST and largest:
            shift = int(unit_exponents(largest))
            x, y = (scaled_rows(side, unit_exponents(largest)[None]) for side in (x, y))
    row, column = (key_terms(squared_norms(side), metric) for side in (x, y))
    keys = reference.ranking_keys(x @ y.T, row[:, None], column, number)
    if metric == "cosine":
        return keys
    return keys.sqrt() if not shift else (keys.double().sqrt() * 2.0**-shift).to(torch.float32)


def _near_one(x: Tensor, norms: Tensor) -> Tensor:
    """Return float32 rows, those scaled by a power of two whose norms float32 products may lose."""
    length = norms.sqrt()
    odd = (norms > 0) & norms.isfinite() & ((length < SMALLEST) | (length > LARGEST))
    if not bool(odd.any()):
        return x
    return scaled_rows(x, torch.where(odd, unit_exponents(norms), 0))


def part_keys(
    products: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    metric: int,
    keys: Tensor,
) -> None:
    """Write the distances of a tile of part features to `keys` (`reference.part_keys`).

    Raises:
        ValueError: a gradient is required.
    """
    refuse_gradient("part_keys", products)
    _PART_KEYS(products, row_term, column_term, row_weight, column_weight, metric, keys)


def _squared_norms_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.float64)


_SQUARED_NORMS = define(
    "squared_norms(Tensor x) -> Tensor", reference.squared_norms, _squared_norms_fake
)
_PAIR_SUMS = define(
    "pair_sums(Tensor x, Tensor y, Tensor rows, Tensor columns, int metric) -> Tensor",
    reference.pair_sums,
    lambda x, y, rows, columns, metric: x.new_empty(rows.shape, dtype=torch.float64),
)
_PART_KEYS = define(
    "part_keys(Tensor products, Tensor row_term, Tensor column_term, Tensor row_weight, "
    "Tensor column_weight, int metric, Tensor(a!) keys) -> ()",
    reference.part_keys,
)
