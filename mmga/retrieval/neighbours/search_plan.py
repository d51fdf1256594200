"""Choose the tiles of a certified neighbour search, by counts of undecided pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.retrieval.bounds.approximation import (
    Approximation,
    Approximator,
    Projection,
    bound_between,
    tile_products,
)
from mmga.retrieval.bounds.planner import (
    CANDIDATES,
    COUNTING,
    INTEGERS,
    candidates,
    cheapest,
    making_cost,
    product_cost,
    spread,
)
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.tile_sizes import TILE

# Vectors of which the undecided pairs are counted beforehand.
_PILOT = 48
# Operations of all products below which there is nothing to save.
_SMALL = 1e11


def filter_dimensions(dimensions: int) -> int:
    """Return how many coordinates the filter takes, which must find some near vectors."""
    return max(min(dimensions, CANDIDATES[0]), dimensions // 2)


def filter_part(tiles: Approximator | None, vectors: Approximation) -> Approximation:
    """Return the part of vectors that the filter takes: of coordinates, not all."""
    if not isinstance(tiles, Projection):
        return vectors
    width = filter_dimensions(vectors.rows.shape[1])
    return Approximation(vectors.rows[:, :width], vectors.radius, vectors.slack)


def cheapest_tiles(
    vectors: VectorSet, k: int, kept: int = 0, *, farthest: bool = True, seed: int = 0
) -> Approximator | None:
    """Return what tiles are made from in the cheapest search; None: the features.

    Args:
        vectors: N vectors.
        k: neighbours wanted.
        kept: pairs whose distances are wanted too, and come from nothing but tiles of the features
            or a product of their own.
        farthest: each vector's largest distance is wanted.
        seed: of the directions.
    """
    n, width = len(vectors), vectors.dimension
    operations = float(n) * n * width
    if operations < _SMALL:
        return None
    choices = candidates(vectors, float(vectors.norms.max()) ** 0.5, operations, seed)
    if not choices:
        return None
    # Half of all pairs: filter and refinement, approximations made, integers of candidates.
    costs = [
        _filter_cost(tiles, width)
        + product_cost(tiles, width)
        + 2 * COUNTING
        + min(1.0, 2 * share) * INTEGERS * width
        + making_cost(tiles, width) * 2 / n
        + 2.0 * width * kept / n**2
        for tiles, share in zip(
            choices, _undecided_shares(vectors, choices, k, farthest), strict=True
        )
    ]
    return cheapest(choices, costs, width + COUNTING)


def _filter_cost(tiles: Approximator, width: int) -> float:
    if isinstance(tiles, Projection):
        return float(filter_dimensions(tiles.basis.shape[1]))
    return product_cost(tiles, width)


def _undecided_shares(
    vectors: VectorSet, choices: list[Approximator], k: int, farthest: bool
) -> list[float]:
    """Return, for each choice, the share of a vector's pairs that its limits leave undecided."""
    n, metric = len(vectors), vectors.metric
    chosen, others = spread(n, _PILOT), spread(n, 4096)
    rows, norms = vectors.take(chosen), vectors.norms[chosen]
    # Products of float32: only the estimate depends on them.
    exact = torch.cat(
        [rows @ vectors.block(b, min(b + TILE, n)).T for b in range(0, n, TILE)], 1
    ).double()
    if metric == "cosine":
        exact *= torch.where(norms > 0, norms.rsqrt(), 0.0)[:, None] * vectors.terms

    def keys(inner: Tensor, places: Tensor) -> Tensor:
        if metric == "cosine":
            return 1 - inner
        return norms[:, None] + vectors.norms[places] - 2 * inner

    exact = keys(exact, torch.arange(n, device="cpu"))
    near = exact.topk(min(n, 8 * k), dim=1, largest=False).indices  # [P, 8k]
    other_rows = vectors.take(others)
    flat = near.reshape(-1) if any(isinstance(t, Projection) for t in choices) else near[:0, 0]
    jaccard_join = vectors.take(flat)
    shares = []
    for tiles in choices:
        own = tiles.of(rows, norms, metric)
        all_ = tiles.of(other_rows, vectors.norms[others], metric)
        inner = tile_products(
            own, all_, torch.empty(len(own.rows), len(all_.rows), dtype=torch.float32, device="cpu")
        ).double()
        guess = keys(inner, others)
        limit = exact.gather(1, near[:, :k]).amax(1, keepdim=True)
        if isinstance(tiles, Projection):  # few coordinates are less sure which are the nearest
            theirs = filter_part(tiles, tiles.of(jaccard_join, vectors.norms[flat], metric)).rows
            mine = filter_part(tiles, own).rows[:, :, None]
            inner = (theirs.view(*near.shape, -1) @ mine).squeeze(2).double()
            found = near.gather(1, keys(inner, near).topk(k, dim=1, largest=False).indices)
            limit = exact.gather(1, found).amax(1, keepdim=True)
        far = others[guess.argmax(1, keepdim=True)]
        bound = bound_between(own, all_, metric)
        width = bound.row_radius[:, None] * bound.column_radius + bound.row_slack[:, None]
        width = width + bound.column_slack
        wanted = guess - width <= limit
        if farthest:
            wanted |= guess + width >= exact.gather(1, far)
        shares.append(float(wanted.double().mean()))
    return shares
