"""What the tiles of a certified neighbour search come from, and which of it is cheapest."""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.retrieval.bounds.approximation import (
    Approximation,
    Bytes,
    Subspace,
    Tiles,
    bound_between,
    tile_products,
)
from mmga.retrieval.bounds.candidates import CANDIDATES, bytes_for, directions_of, narrowed, spread
from mmga.retrieval.neighbours.vectors import TILE, Items

# Items of which the undecided pairs are counted beforehand.
_PILOT = 48
# Costs of a pair in products of one dimension: looking at it, and a dimension of a product of
# integers, which is bound by the way of two features through the caches.
_COUNTING, _INTEGERS = 40, 3
# Dimensions of 8 bits that are multiplied in the time of one of float32, and what making floats of
# the products costs.
_BYTES, _ROUNDING = 4, 10
# Operations of all products below which there is nothing to save.
_SMALL = 1e11


def first_dimensions(dimensions: int) -> int:
    """Return how many coordinates the first look takes, which must find some near items."""
    return max(min(dimensions, CANDIDATES[0]), dimensions // 2)


def first_part(tiles: Tiles, items: Approximation) -> Approximation:
    """Return what of items the first look takes: of coordinates, not all."""
    if not isinstance(tiles, Subspace):
        return items
    width = first_dimensions(items.rows.shape[1])
    return Approximation(items.rows[:, :width], items.radius, items.slack)


def cheapest_tiles(
    items: Items, k: int, kept: int = 0, *, farthest: bool = True, seed: int = 0
) -> Tiles:
    """Return what tiles come from in the cheapest search; None: the features.

    The choice follows from counts of operations and of undecided pairs, not from a clock: the same
    items give the same choice on machines with the same instructions.

    Args:
        items: N items.
        k: neighbours wanted.
        kept: pairs whose distances are wanted too, and come from nothing but tiles of the features
            or a product of their own.
        farthest: each item's largest distance is wanted.
        seed: of the directions.
    """
    n, width, metric = len(items), items.dimension, items.metric
    operations = float(n) * n * width
    if operations < _SMALL:
        return None
    subspace = directions_of(items.take, n, width, metric, operations, seed)
    choices: list[Subspace | Bytes] = list(narrowed(subspace))
    choices += bytes_for(width, float(items.norms.max()) ** 0.5)
    if not choices:
        return None
    # Half of all pairs: two looks, what stands for features made, integers of undecided pairs.
    best, least = None, float(width + _COUNTING)
    later = 2.0 * width * kept / n**2
    for tiles, share in zip(choices, _undecided_shares(items, choices, k, farthest), strict=True):
        if isinstance(tiles, Subspace):
            c = tiles.directions.shape[1]
            looks = c + first_dimensions(c) + 2.0 * width * c / n
        else:
            looks = 2 * (width / _BYTES + _ROUNDING)
        cost = looks + 2 * _COUNTING + min(1.0, 2 * share) * _INTEGERS * width + later
        if cost < least:
            best, least = tiles, cost
    return best


def _undecided_shares(
    items: Items, choices: list[Subspace | Bytes], k: int, farthest: bool
) -> list[float]:
    """Return the share of an item's pairs that its limits leave undecided, by kind of tiles."""
    n, metric = len(items), items.metric
    chosen, others = spread(n, _PILOT), spread(n, 4096)
    rows, norms = items.take(chosen), items.norms[chosen]
    # Products of float32: only the estimate depends on them.
    exact = torch.cat(
        [rows @ items.block(b, min(b + TILE, n)).T for b in range(0, n, TILE)], 1
    ).double()
    if metric == "cosine":
        exact *= torch.where(norms > 0, norms.rsqrt(), 0.0)[:, None] * items.terms

    def keys(inner: Tensor, places: Tensor) -> Tensor:
        return 1 - inner if metric == "cosine" else norms[:, None] + items.norms[places] - 2 * inner

    exact = keys(exact, torch.arange(n))
    near = exact.topk(min(n, 8 * k), dim=1, largest=False).indices  # [P, 8k]
    other_rows = items.take(others)
    flat = near.reshape(-1) if any(isinstance(t, Subspace) for t in choices) else near[:0, 0]
    near_rows = items.take(flat)
    shares = []
    for tiles in choices:
        own = tiles.of(rows, norms, metric)
        all_ = tiles.of(other_rows, items.norms[others], metric)
        inner = tile_products(own, all_, torch.empty(len(own.rows), len(all_.rows))).double()
        guess = keys(inner, others)
        limit = exact.gather(1, near[:, :k]).amax(1, keepdim=True)
        if isinstance(tiles, Subspace):  # few coordinates are less sure which are the nearest
            theirs = first_part(tiles, tiles.of(near_rows, items.norms[flat], metric)).rows
            mine = first_part(tiles, own).rows[:, :, None]
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
