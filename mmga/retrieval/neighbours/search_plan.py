"""Choose the tiles of a certified neighbour search, by counts of undecided pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmga.ops.certified import int8_rate
from mmga.retrieval.bounds.approximation import (
    Approximator,
    Int8,
    bound_between,
    tile_products,
)
from mmga.retrieval.bounds.planner import (
    COUNTING,
    INTEGERS,
    candidates,
    cheapest,
    making_cost,
    product_cost,
    spread,
    takes_int8,
)
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.tile_sizes import TILE

# Vectors of which the undecided pairs are counted beforehand, and others of which their nearest are
# taken for that.
_PILOT, _SAMPLE = 48, 8192
# The share of all columns up to which lists are worth looking for by bounds.
_LARGEST_SHARE = 0.25
# Operations of all products from which on other tiles than those of 8 bits are tried.
_LARGE = 2e12
# Of one look: its rate beside that of tiles of 8 bits, which it does not write, and pairs of a row
# that it compares by 16 bits: some, and some for each neighbour. Of a filter: vectors that limits
# come from, and the cost of a dimension of an exact distance.
_LOOK_RATE, _FEW, _OF_EACH, _SEEN, _EXACT = 1.75, 100, 8, 1024, 10
# Operations of all products below which there is nothing to save by 8 bits, or by fewer dimensions.
_SMALL_LOOK, _SMALL = 1e8, 4e8


def cheapest_tiles(
    rows: VectorSet,
    columns: VectorSet,
    k: int,
    kept: int = 0,
    *,
    farthest: bool = True,
    seed: int = 0,
) -> Approximator | None:
    """Return what tiles are made from in the cheapest search; None: the features.

    Args:
        rows: vectors whose neighbours are wanted.
        columns: vectors among which they are searched; perhaps `rows` itself, and each pair is then
            met once.
        k: neighbours wanted.
        kept: pairs whose distances are wanted too, and come from nothing but tiles of the features
            or a product of their own.
        farthest: each vector's largest distance is wanted.
        seed: of the directions.
    """
    own, width = rows is columns, rows.dimension
    longest = max(float(side.norms.max()) for side in (rows, columns)) ** 0.5
    if rows.device.type != "cpu":  # whose other products of float32 are worth no bound
        return Int8(longest)
    pairs = len(rows) * float(len(columns)) / (2 if own else 1)
    operations = 2 * pairs * width
    if operations < _SMALL_LOOK:
        return None
    if takes_int8(width, rows.device) and not kept:
        if k > _LARGEST_SHARE * len(columns):
            return None
        if operations < _LARGE:
            return Int8(longest)
    if operations < _SMALL:
        return None
    choices = candidates(columns, longest, operations, seed)
    if not choices:
        return None
    made = len(rows) + (0 if own else len(columns))
    sides, n = 2 if own else 1, len(columns)
    # Distances that are computed as limits fall, and pairs that one look compares by 16 bits.
    exact = min(1.0, sides * k * (1 + math.log(max(1.0, n / _SEEN))) / n)
    looked = min(1.0, sides * (_FEW + _OF_EACH * k) / n)
    costs = [
        width / (_LOOK_RATE * int8_rate(width)) + COUNTING / 4 + looked * INTEGERS * width
        if isinstance(tiles, Int8) and not kept
        else product_cost(tiles, width)
        + COUNTING
        + min(1.0, sides * share) * INTEGERS * width
        + exact * _EXACT * width
        + making_cost(tiles, width) * made / pairs
        + width * kept / pairs
        for tiles, share in zip(
            choices, _undecided_shares(rows, columns, choices, k, farthest), strict=True
        )
    ]
    return cheapest(choices, costs, width + COUNTING)


def _undecided_shares(
    rows: VectorSet, columns: VectorSet, choices: list[Approximator], k: int, farthest: bool
) -> list[float]:
    """Return, for each choice, the share of a vector's pairs that its limits leave undecided."""
    n, metric = len(columns), columns.metric
    chosen, others = spread(len(rows), _PILOT, 0.5), spread(n, 4 * TILE)
    features, norms = rows.take(chosen), rows.norms[chosen]
    some = spread(n, _SAMPLE)
    # Products of float32: only the estimate depends on them.
    exact = (features @ columns.take(some).T).double()
    if metric == "cosine":
        exact *= torch.where(norms > 0, norms.rsqrt(), 0.0)[:, None] * columns.terms[some]

    def keys(inner: Tensor, places: Tensor) -> Tensor:
        if metric == "cosine":
            return 1 - inner
        return norms[:, None] + columns.norms[places] - 2 * inner

    exact = keys(exact, some)
    limit = exact.kthvalue(max(1, k * len(some) // n), dim=1, keepdim=True).values
    farthest_key = exact.amax(1, keepdim=True)
    other_rows = columns.take(others)
    shares = []
    for tiles in choices:
        mine = tiles.of(features, norms, metric)
        all_ = tiles.of(other_rows, columns.norms[others], metric)
        inner = tile_products(
            mine,
            all_,
            torch.empty(len(mine.rows), len(all_.rows), dtype=torch.float32, device="cpu"),
        ).double()
        guess = keys(inner, others)
        bound = bound_between(mine, all_, metric)
        width = bound.row_radius[:, None] * bound.column_radius + bound.row_slack[:, None]
        width = width + bound.column_slack
        wanted = guess - width <= limit
        if farthest:
            wanted |= guess + width >= farthest_key
        shares.append(float(wanted.double().mean()))
    return shares
