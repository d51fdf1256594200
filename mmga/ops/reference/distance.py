"""Norms, inner products in float64 and distances.

Arguments that recur, here and in the files that import this one:
    values: tile of inner products [R, W] of R rows and W columns, or of keys if the metric is
        ``given``.
    row_term: [R], contribution of each row to its keys: 1 / norm (0 for a zero vector) for cosine,
        the squared norm for euclidean; unused for ``given``.
    column_term: [W], likewise of each column.
    metric: index into `METRICS`.
    cosine: squared distances of the normalised vectors, 2 - 2 cos, instead of those of the vectors.
    x: float32 [N, D], rows of features.
    y: float32 [M, D].
    rows: int64 [P], with `columns` int64 [P]: pairs of rows of `x` and of `y`.
"""

from __future__ import annotations

import torch
from torch import Tensor

METRICS = ("given", "cosine", "euclidean")
"""Conversions of a tile's values to ranking keys; operators take a metric's index."""


def interleaved_sum(terms: Tensor) -> Tensor:
    """Sum float64 values [..., D] in the one order that all devices use.

    Accumulator l of 8 takes the elements l, l + 8, l + 16, ... in this order; the eight are then
    added as ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
    """
    terms = torch.nn.functional.pad(terms, (0, -terms.shape[-1] % 8))
    accumulators = torch.zeros_like(terms[..., :8])
    for start in range(0, terms.shape[-1], 8):
        accumulators = accumulators + terms[..., start : start + 8]
    pairs = accumulators[..., 0::2] + accumulators[..., 1::2]
    fours = pairs[..., 0::2] + pairs[..., 1::2]
    return fours[..., 0] + fours[..., 1]


def squared_norms(x: Tensor) -> Tensor:
    """Return the squared norm of every row.

    Args:
        x: float32 or float16 [N, D].

    Returns:
        float64 [N]; the products are exact, the order of their sum is `interleaved_sum`'s.
    """
    return interleaved_sum(x.to(torch.float64).square())


def ranking_keys(values: Tensor, row_term: Tensor, column_term: Tensor, metric: int) -> Tensor:
    """Turn inner products of any shape into ranking keys, in the dtype of `values`.

    The terms broadcast against `values`.

    Returns:
        cosine: 1 - (value * row_term) * column_term; euclidean: the squared distance
        max(0, (row_term + column_term) - 2 * value).
    """
    if metric == 1:
        return 1 - (values * row_term) * column_term
    if metric == 2:
        return ((row_term + column_term) - 2 * values).clamp_min(0)
    return values


def pair_sums(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, metric: int) -> Tensor:
    """Return the inner products (cosine) or squared distances (euclidean) of pairs of rows.

    Products of float32 are exact in float64; a difference and its square are rounded once each, so
    that nothing cancels between near-duplicates. The order of the sum is `interleaved_sum`'s: the
    result depends on neither device nor batch.

    Returns:
        [P] float64.
    """
    result = x.new_zeros(len(rows), dtype=torch.float64)
    for begin in range(0, len(rows), 1024):
        part = slice(begin, begin + 1024)
        one, other = x[rows[part]].double(), y[columns[part]].double()  # [P, D]
        squared = metric == METRICS.index("euclidean")
        result[part] = interleaved_sum((one - other).square() if squared else one * other)
    return result


def squared_distances_(tile: Tensor, row_term: Tensor, column_term: Tensor, cosine: bool) -> None:
    """Turn a tile of inner products into squared distances >= 0 in place.

    Args:
        tile: float32 [R, W]; the terms are float32, too.
    """
    if cosine:
        tile.copy_(2 * (1 - (tile * row_term[:, None]) * column_term))
    else:
        tile.copy_((row_term[:, None] + column_term) - 2 * tile)
    tile.copy_(torch.where(tile > 0, tile, 0.0))  # never -0, whose bits would order last


def part_keys(
    products: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    metric: int,
    keys: Tensor,
) -> None:
    """Write visibility-weighted mean distances of part features.

    Args:
        products: inner products of every part, float32 [P, R, W].
        row_term: float32 [P, R].
        column_term: float32 [P, W].
        row_weight: visibility, float32 [P, R].
        column_weight: float32 [P, W].
        metric: cosine or euclidean.
        keys: float32 [R, W], set to sum_p w_p d_p / sum_p w_p, w_p = row_weight * column_weight,
            d_p = 1 - cosine or the Euclidean distance (not squared), summed in the order of parts;
            to infinity where the weights sum to 0.
    """
    numerator = torch.zeros_like(keys)
    denominator = torch.zeros_like(keys)
    for part, product in enumerate(products):
        distance = ranking_keys(product, row_term[part][:, None], column_term[part], metric)
        if metric == METRICS.index("euclidean"):
            # torch's float32 roots are off by a last bit on some CPUs.
            distance = distance.double().sqrt().to(torch.float32)
        weight = row_weight[part][:, None] * column_weight[part]  # [R, W]
        numerator = numerator + weight * distance
        denominator = denominator + weight
    keys.copy_(torch.where(denominator > 0, numerator / denominator, torch.inf))
