"""Neighbour graphs of one set as sparse matrices, for clustering and graph libraries."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from mmga.common.errors import UserError, whole_number
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.neighbours import Neighbours
from mmga.ops.precision import float32_products
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.certified_knn import certified_within, exact_order
from mmga.retrieval.neighbours.knn import (
    ROUNDING,
    ArrayLike,
    check_metric,
    feature_rows,
    from_squared,
    search,
    without_self,
)
from mmga.retrieval.neighbours.search_plan import cheapest_tiles
from mmga.retrieval.neighbours.sparse import to_torch
from mmga.retrieval.neighbours.tile_sizes import check_memory, search_bytes

MODES = ("distance", "connectivity")
"""What a graph of neighbours stores: their distances, or ones."""
# Pairs whose distances are computed at once.
_PAIRS = 1 << 20
# Of a neighbour in a graph while it is put together, and of a pair, which is in two rows.
_GRAPH_BYTES, _WITHIN_BYTES = 60, 120


@float32_products()
def kneighbors_graph(
    features: ArrayLike,
    k: int,
    metric: str = "cosine",
    mode: str = "distance",
    include_self: bool = False,
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return the k nearest of every vector of a set as a sparse matrix.

    The conventions are those of `sklearn.neighbors.kneighbors_graph`: row i holds the neighbours
    of vector i, exactly k of them, of those that tie those of the lowest index; stored zeros are
    duplicates. Estimators that take `metric="precomputed"` want each vector in its own row, and
    one more for it: `to_scipy(kneighbors_graph(x, k + 1, include_self=True), by_distance=True)` is
    what `KNeighborsTransformer(n_neighbors=k)` gives.

    Args:
        features: `Features`, or a tensor or array [N, D].
        k: at least 1; at most N - 1, with `include_self` N.
        metric: "cosine" (1 - cos, 1 for a zero vector) or "euclidean" (not squared).
        mode: "distance", or "connectivity" for ones in their place.
        include_self: each vector is one of its own k neighbours, at a stored zero.
        exact: ``"certified"``: neighbours that nearly tie have the order of float64 arithmetic,
            and so have distances; ``"float32"``: those of float32 tiles; None: certified where
            that can be (on the CPU).
        memory: bound on what is allocated beyond the features, such as ``"2G"``.
        progress: called as (phase, done, total).

    Returns:
        [N, N] torch sparse CSR, float64, columns ascending, as torch wants them; not symmetric.

    Raises:
        UserError: an argument is out of its range, `memory` does not suffice, or a value is NaN
            or infinite.
    """
    check_metric(metric)
    bound = parse(memory)
    if mode not in MODES:
        raise UserError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    vectors = VectorSet([feature_rows(features, "features")], metric)
    k, most = whole_number("k", k), len(vectors) - (not include_self)
    if not 1 <= k <= most:
        others = "vectors" if include_self else "others that a vector has"
        raise UserError(f"k must be from 1 to the {most} {others}, got {k}")
    wanted = k + (not include_self)
    needed = search_bytes(vectors, vectors, wanted) + _GRAPH_BYTES * len(vectors) * wanted
    spare = check_memory(bound, needed, f"a graph of {len(vectors)} x {k} neighbours")
    found = search(vectors, wanted, exact=exact, farthest=False, spare=spare, progress=progress)
    near = found.neighbours
    if include_self:
        _put_self_in(near)
    else:
        near = without_self(near)
    columns, place = near.index.sort(dim=1)
    if mode == "connectivity":
        values = torch.ones(columns.shape, dtype=torch.float64, device=vectors.device)
    elif found.exact == "certified":
        values = from_squared(_exact_distances(vectors, columns, progress), metric)
    else:
        values = from_squared(near.distances.gather(1, place).double(), metric)
    offsets = torch.arange(0, columns.numel() + 1, k, dtype=torch.int64, device=vectors.device)
    return to_torch(ops.CsrRows(offsets, columns.reshape(-1), values.reshape(-1)))


def _put_self_in(near: Neighbours) -> None:
    """Put every vector in its own list, in place, where k duplicates of it are there already."""
    own = torch.arange(len(near.index), dtype=torch.int32, device=near.index.device)
    missing = (near.index != own[:, None]).all(1)
    near.index[missing, -1] = own[missing]


def _exact_distances(vectors: VectorSet, columns: Tensor, progress: Progress | None) -> Tensor:
    """Return the squared distances of every vector to some, int32 [N, K], as float64 [N, K]."""
    values = torch.empty(columns.shape, dtype=torch.float64, device=columns.device)
    count, k = columns.shape
    step = max(1, _PAIRS // k)
    for begin in range(0, count, step):
        some = columns[begin : begin + step].long()
        own = torch.arange(begin, begin + len(some), device=columns.device)
        pairs = vectors.exact_distances(own.repeat_interleave(k), some.reshape(-1))
        values[begin : begin + step] = pairs.view(some.shape)
        if progress is not None:
            progress("distances", begin + len(some), count)
    return values


@float32_products()
def neighbours_within(
    features: ArrayLike,
    radius: float,
    metric: str = "cosine",
    *,
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return the distances of a set to itself up to a radius, as a sparse matrix.

    Exact: in float64, whatever the tiles. Each row holds itself at a stored zero, and so are
    duplicates; what is not stored is farther away. `mmga.to_scipy` makes it the matrix that
    `DBSCAN(metric="precomputed")` takes for any eps up to the radius; with `by_distance=True` what
    `sklearn.neighbors.radius_neighbors_graph` gives, and each vector itself.

    Args:
        features: `Features`, or a tensor or array [N, D] on the CPU.
        radius: distances up to this one are stored.
        metric: "cosine" (1 - cos, 1 for a zero vector) or "euclidean" (not squared).
        memory: bound on what is allocated beyond the features, such as ``"2G"``; where it does not
            suffice, pairs are still counted, to say how much does.
        progress: called as (phase, done, total).

    Returns:
        [N, N] torch sparse CSR, float64, symmetric, columns ascending.

    Raises:
        UserError: the radius is no distance, `memory` does not suffice, or a value is NaN or
            infinite.
    """
    check_metric(metric)
    bound = parse(memory)
    if isinstance(radius, bool) or not isinstance(radius, Real) or not 0 <= radius < math.inf:
        raise UserError(f"radius must be a finite distance of at least 0, got {radius!r}")
    vectors = VectorSet([feature_rows(features, "features")], metric)
    if vectors.device.type != "cpu":
        raise UserError(
            f"features: pairs within a radius are found on the CPU, found {vectors.device}; "
            "give features in host memory"
        )
    exact_order(vectors, "certified")
    needed = search_bytes(vectors, vectors, 1) + _WITHIN_BYTES * len(vectors)
    check_memory(bound, needed, f"a search among {len(vectors)} vectors")
    cosine, count = metric == "cosine", len(vectors)
    # Pairs at the radius itself must not be lost to rounding, of its square or of equal directions.
    limit = (2 * radius + 4 * ROUNDING if cosine else radius**2) * (1 + 2.0**-50) + 2.0**-1000
    tiles = cheapest_tiles(vectors, vectors, 1, farthest=False)
    own = torch.arange(count, dtype=torch.int64, device="cpu")
    pieces = [(own, own, torch.zeros(count, dtype=torch.float64, device="cpu"))]
    for row, column, squared in certified_within(vectors, limit, tiles, progress=progress):
        distances = from_squared(squared, metric)
        near = distances <= radius
        needed += _WITHIN_BYTES * int(near.sum())
        if bound is None or needed <= bound:
            pieces.append((row[near], column[near], distances[near]))
        else:
            pieces.clear()
    check_memory(bound, needed, f"the pairs within {radius}")
    rows, columns, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    order = ((rows << 32) + columns).argsort()
    offsets = torch.zeros(count + 1, dtype=torch.int64, device="cpu")
    offsets[1:] = rows.bincount(minlength=count).cumsum(0)
    upper = ops.CsrRows(offsets, columns[order].to(torch.int32), values[order])
    return to_torch(ops.symmetrise(upper))
