"""Bounded selection of the nearest neighbours.

Arguments that recur:
    candidates: int64 [N, S], S >= k slots an item. A candidate holds the bits of its float32
        distance (>= 0, so that they order like the number) above its int32 index; the lists are
        therefore ordered by (distance, index).
    counts: int32 [N], filled slots of each item.
    k: neighbours of each item.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.ops.reference.distance import squared_distances_

_EMPTY = torch.iinfo(torch.int64).max


def nearest_in_rows(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest entries of each row in the order of (distance, index).

    Args:
        distances: [R, N], float32 or float64, free of NaN.
        k: from 1 to N.

    Returns:
        distances [R, k] of the input's type and int32 indices [R, k].
    """
    ordered, index = torch.sort(distances, dim=1, stable=True)
    return ordered[:, :k].contiguous(), index[:, :k].to(torch.int32)


def select_neighbours(
    candidates: Tensor,
    counts: Tensor,
    thresholds: Tensor,
    maxima: Tensor,
    kept: Tensor | None,
    products: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    cosine: bool,
    k: int,
    first_item: int,
    first_other: int,
    symmetric: bool,
) -> None:
    """Insert the squared distances of a tile of inner products into its items' candidate lists.

    Lists, counts, thresholds and maxima are changed in place.

    Args:
        thresholds: [N] float32, infinity while an item has fewer than k candidates, then a bound
            that its k-th smallest distance does not exceed.
        maxima: [N] float32, largest distance of each item so far.
        kept: [Q, N - Q] float32, gets the distances of items before Q to those from Q on, as far
            as the tile has them; None where they are not wanted. Symmetric tiles only.
        products: [R, C] float32, C contiguous, between items (rows) and others (columns).
        row_term: [R], see `distance`.
        column_term: [C].
        cosine: see `distance`.
        first_item: item of the tile's first row.
        first_other: index of the candidate of its first column.
        symmetric: the others are the same items. Only pairs with item < other are inserted, into
            the lists of both.
    """
    tile = products.clone()
    squared_distances_(tile, row_term, column_term, cosine)
    item = torch.arange(first_item, first_item + len(tile), device=tile.device)
    other = torch.arange(first_other, first_other + tile.shape[1], device=tile.device)
    taken = item[:, None] < other if symmetric else torch.ones_like(tile, dtype=torch.bool)
    lists = candidates, counts, thresholds, maxima
    _insert(lists, k, tile, taken, item, other)
    if symmetric:
        _insert(lists, k, tile.t(), taken.t(), other, item)
    if kept is not None:
        queries = len(kept)
        row, column = (taken & (item[:, None] < queries) & (other >= queries)).nonzero().unbind(1)
        kept[item[row], other[column] - queries] = tile[row, column]


def ordered_candidates(candidates: Tensor, counts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of every candidate list, each of at least k, by (distance, index).

    Returns:
        Indices int32 [N, k] and distances float32 [N, k].
    """
    slots = torch.arange(candidates.shape[1], device=candidates.device)
    ordered = candidates.masked_fill(slots >= counts[:, None], _EMPTY).sort(dim=1).values[:, :k]
    distances = (ordered >> 32).to(torch.int32).view(torch.float32)
    return (ordered & 0x7FFFFFFF).to(torch.int32), distances.contiguous()


def _insert(
    lists: tuple[Tensor, Tensor, Tensor, Tensor],
    k: int,
    block: Tensor,
    taken: Tensor,
    item: Tensor,
    other: Tensor,
) -> None:
    """Insert the taken entries of a block of distances [I, O] into the lists of its rows."""
    candidates, counts, thresholds, maxima = lists
    if not block.numel():
        return
    packed = (block.contiguous().view(torch.int32).to(torch.int64) << 32) | other  # [I, O]
    packed = packed.masked_fill(~taken, _EMPTY)
    slots = torch.arange(candidates.shape[1], device=block.device)
    held = candidates[item].masked_fill(slots >= counts[item, None], _EMPTY)
    merged = torch.cat([held, packed], dim=1).sort(dim=1).values[:, :k]
    found = (merged != _EMPTY).sum(1)
    candidates[item, : merged.shape[1]] = merged
    counts[item] = found.to(torch.int32)
    bound = (merged[:, -1] >> 32).to(torch.int32).view(torch.float32)
    thresholds[item] = torch.where(found == k, bound, thresholds[item])
    reach = block.masked_fill(~taken, 0).amax(1)
    maxima[item] = torch.maximum(maxima[item], reach)
