"""Neighbour graphs of one set as sparse matrices, for clustering and graph libraries."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.distance import exact_sqrt
from mmga.ops.precision import float32_products
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.certified_knn import certified_within, exact_order
from mmga.retrieval.neighbours.knn import ROUNDING, ArrayLike, check_metric, feature_rows
from mmga.retrieval.neighbours.search_plan import cheapest_tiles
from mmga.retrieval.neighbours.sparse import to_torch


@float32_products()
def neighbours_within(
    features: ArrayLike,
    radius: float,
    metric: str = "cosine",
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Return the distances of a set to itself up to a radius, as a sparse matrix.

    Exact: in float64, whatever the tiles. Each row holds itself at a stored zero, and so are
    duplicates; what is not stored is farther away. `mmga.to_scipy` makes it the matrix that
    `DBSCAN(metric="precomputed")` takes for any eps up to the radius.

    Args:
        features: `Features`, or a tensor or array [N, D] on the CPU.
        radius: distances up to this one are stored.
        metric: "cosine" (1 - cos, 1 for a zero vector) or "euclidean" (not squared).
        progress: called as (phase, done, total).

    Returns:
        [N, N] torch sparse CSR, float64, symmetric, columns ascending.

    Raises:
        UserError: the radius is no distance, or a value is NaN or infinite.
    """
    check_metric(metric)
    if isinstance(radius, bool) or not isinstance(radius, Real) or not 0 <= radius < math.inf:
        raise UserError(f"radius must be a finite distance of at least 0, got {radius!r}")
    vectors = VectorSet([feature_rows(features, "features")], metric)
    exact_order(vectors, "certified")
    cosine, count = metric == "cosine", len(vectors)
    # Pairs at the radius itself must not be lost to rounding, of its square or of equal directions.
    limit = (2 * radius + 4 * ROUNDING if cosine else radius**2) * (1 + 2.0**-50) + 2.0**-1000
    tiles = cheapest_tiles(vectors, vectors, 1, farthest=False)
    own = torch.arange(count, dtype=torch.int64, device="cpu")
    pieces = [(own, own, torch.zeros(count, dtype=torch.float64, device="cpu"))]
    for row, column, squared in certified_within(vectors, limit, tiles, progress=progress):
        distances = squared / 2 if cosine else exact_sqrt(squared)
        if cosine:
            distances[distances < ROUNDING] = 0
        near = distances <= radius
        pieces.append((row[near], column[near], distances[near]))
    rows, columns, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    order = ((rows << 32) + columns).argsort()
    offsets = torch.zeros(count + 1, dtype=torch.int64, device="cpu")
    offsets[1:] = rows.bincount(minlength=count).cumsum(0)
    upper = ops.CsrRows(offsets, columns[order].to(torch.int32), values[order])
    return to_torch(ops.symmetrise(upper))
