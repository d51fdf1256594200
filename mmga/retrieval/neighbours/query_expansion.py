"""Query expansion and database-side augmentation: features averaged with their neighbours.

alpha query expansion: Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation",
TPAMI 2019, section 3.4; database-side augmentation is the same of the gallery (Arandjelovic and
Zisserman, CVPR 2012). Both work on normalised features, so the metric is cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.common.errors import UserError, real_number, whole_number
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.ops.distance import unit_rows
from mmga.ops.neighbours import Neighbours
from mmga.ops.precision import float32_products
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.knn import (
    ArrayLike,
    feature_rows,
    nearest_items,
    search,
    vector_sets,
    without_self,
)
from mmga.retrieval.neighbours.tile_sizes import check_memory, search_bytes

# Numbers of neighbours that are copied together.
_COPIED = 1 << 22


@float32_products()
def expand_queries(
    query: ArrayLike,
    gallery: ArrayLike,
    neighbours: int = 10,
    alpha: float = 3.0,
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return each query averaged with its nearest gallery items, weighted by cosine^alpha.

    Args:
        query: `Features`, or a tensor or array [Q, D].
        gallery: likewise, [G, D].
        neighbours: gallery items averaged with a query (which has weight 1); 0 leaves it alone.
        alpha: exponent of the cosine, at least 0; 0 is the plain average. Items with a cosine of
            0 or less have no weight.
        exact: whose order counts where items nearly tie for the last place, see `mmga.nearest`.
        memory: bound on what is allocated beyond the features, such as ``"2G"``.
        progress: called as (phase, done, total).

    Returns:
        [Q, D] float32, normalised (a zero vector stays one).

    Raises:
        UserError: an argument is out of its range, widths differ, `memory` does not suffice, or a
            value is not finite.
    """
    queries, items = vector_sets(query, gallery, "cosine")
    _check(neighbours, alpha, len(items), "neighbours of query expansion")
    if neighbours == 0:
        return unit_rows(queries.take(torch.arange(len(queries), device="cpu")))
    _check_room(memory, queries, items, neighbours)
    found = nearest_items(queries, items, neighbours, exact=exact, progress=progress)
    return _averaged(queries, items, found, alpha)


@float32_products()
def augment_gallery(
    gallery: ArrayLike,
    neighbours: int = 10,
    alpha: float = 3.0,
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return each gallery item averaged with its nearest others, weighted by cosine^alpha.

    Args:
        gallery: `Features`, or a tensor or array [G, D].
        neighbours: others averaged with an item (which has weight 1); 0 leaves it alone.
        alpha: as in `expand_queries`.
        exact: as in `expand_queries`.
        memory: likewise.
        progress: called as (phase, done, total).

    Returns:
        [G, D] float32, normalised (a zero vector stays one).

    Raises:
        UserError: as in `expand_queries`.
    """
    items = VectorSet([feature_rows(gallery, "gallery")], "cosine")
    _check(neighbours, alpha, len(items) - 1, "neighbours of database-side augmentation")
    if neighbours == 0:
        return unit_rows(items.take(torch.arange(len(items), device="cpu")))
    _check_room(memory, items, items, neighbours + 1)
    found = search(items, neighbours + 1, exact=exact, farthest=False, progress=progress)
    others = without_self(found.neighbours)
    return _averaged(items, items, others, alpha)


def _averaged(own: VectorSet, items: VectorSet, found: Neighbours, alpha: float) -> Tensor:
    cosine = (1 - found.distances / 2).clamp(min=0)  # [N, K]
    weights = torch.where(cosine > 0, cosine**alpha, 0.0)
    result = own.take(torch.arange(len(own), device="cpu"))
    result *= own.terms[:, None]
    step = max(1, _COPIED // items.dimension)  # neighbours whose rows are copied together
    rows = max(1, step // found.index.shape[1])
    for begin in range(0, len(result), rows):
        near = found.index[begin : begin + rows].long()
        weight = weights[begin : begin + rows] * items.terms[near]
        vectors = items.take(near.reshape(-1)).view(*near.shape, -1)  # [r, K, D]
        result[begin : begin + rows] += torch.einsum("rk,rkd->rd", weight, vectors)
    return unit_rows(result)


def _check(neighbours: int, alpha: float, most: int, name: str) -> None:
    if not 0 <= whole_number(name, neighbours) <= most:
        raise UserError(f"{name} must be from 0 to the {most} there are, got {neighbours}")
    if not real_number("alpha", alpha) >= 0:
        raise UserError(f"alpha must be at least 0, got {alpha}")


def _check_room(memory: str | int | None, own: VectorSet, items: VectorSet, k: int) -> None:
    averages = 8 * len(own) * own.dimension + 4 * _COPIED
    needed = search_bytes(own, items, k) + averages
    check_memory(parse(memory), needed, f"averages of {len(own)} features")
