"""From neighbour lists to the encodings V of k-reciprocal re-ranking, as sparse rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmga.ops import k_reciprocal as ops
from mmga.ops.k_reciprocal import CsrRows
from mmga.ops.kernel_threads import kernels_alone
from mmga.ops.neighbours import Neighbours
from mmga.retrieval.reranking.settings import KReciprocal

PairDistances = Callable[[Tensor, Tensor], Tensor]
"""Squared distances, float64 [P], of pairs of items given as two int64 [P]."""


@kernels_alone()
def encode(neighbours: Neighbours, rule: KReciprocal, distance_of: PairDistances) -> CsrRows:
    """Return V after the k2-mean: steps 2 to 5 of Zhong et al.

    Args:
        neighbours: of the N items, squared distances, at least `rule.neighbours_needed(N)` each.
        rule: k1, k2, variant and half list.
        distance_of: gives the distances that no neighbour list has: a set that is joined in step 3
            brings items from beyond an item's own list.

    Returns:
        V, [N, N].
    """
    sets = expanded_sets(neighbours, rule)
    distances = set_distances(sets, neighbours, distance_of)
    rows = ops.encode(sets, *encoded_distances(distances, neighbours.maxima, rule))
    return averaged(rows, neighbours.index, rule)


@kernels_alone()
def expanded_sets(
    neighbours: Neighbours, rule: KReciprocal, wanted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return every item's expanded k-reciprocal set, or those wanted: CSR offsets and columns."""
    n = len(neighbours.index)
    lengths = min(rule.list_length, n), min(rule.half_length, n)
    return ops.expanded_sets(neighbours.index, *lengths, wanted)


@kernels_alone()
def set_distances(
    sets: tuple[Tensor, Tensor], neighbours: Neighbours, distance_of: PairDistances
) -> Tensor:
    """Return the squared distance of each entry of the sets, from the lists where they have it."""
    distances = ops.listed_distances(sets, neighbours.index, neighbours.distances)
    unlisted = (distances < 0).nonzero()[:, 0]
    rows = torch.searchsorted(sets[0], unlisted, right=True) - 1
    distances[unlisted] = distance_of(rows, sets[1][unlisted].long())
    return distances


def encoded_distances(
    distances: Tensor, maxima: Tensor, rule: KReciprocal
) -> tuple[Tensor, Tensor | None]:
    """Return what a variant encodes: distances, and by what a row's are divided (None: nothing)."""
    if not rule.divides:
        return distances, None
    if rule.variant == "torchreid":
        return distances.square(), maxima.double().square()
    return distances, maxima.double()


@kernels_alone()
def averaged(
    rows: CsrRows, index: Tensor, rule: KReciprocal, wanted: Tensor | None = None
) -> CsrRows:
    """Return V after the k2-mean.

    Args:
        rows: V before it.
        index: neighbours, int32 [N, K].
        rule: k2.
        wanted: items whose rows are wanted, int64 [M]; those of others are empty. None: all.
    """
    k2 = min(rule.k2, len(index))
    if k2 > 1:
        return ops.average_rows(rows, index, k2, wanted)
    return rows if wanted is None else ops.keep_rows(rows, wanted)


def jaccard(rows: CsrRows, chosen: Tensor, first: int) -> CsrRows:
    """Return Jaccard distances of chosen items to the items from `first` on: step 6.

    Args:
        rows: V, [N, N].
        chosen: [M] int64.
        first: items before it get no column.

    Returns:
        [M, N] sparse rows of the distances below 1; what is missing is 1.
    """
    return ops.jaccard_rows(rows, ops.transpose_rows(rows, first), chosen)


def mix(
    squared: Tensor,
    maxima: Tensor,
    overlaps: CsrRows,
    first: int,
    rule: KReciprocal,
    scale: float = 1,
) -> Tensor:
    """Return the final distances of some queries: step 7.

    Args:
        squared: [R, G] squared distances d.
        maxima: [R] largest d of each query to any item.
        overlaps: Jaccard distances of the same queries, [R, N]; what is missing is 1.
        first: column of `overlaps` that is the gallery's first.
        rule: lambda_value and variant.
        scale: the metric's own distance as a multiple of d; only `fastreid` mixes that in.

    Returns:
        [R, G] float64.
    """
    return ops.mix_distances(
        squared,
        None if rule.variant == "fastreid" else maxima.double(),
        overlaps,
        first,
        rule.lambda_value,
        power=2 if rule.variant == "torchreid" else 1,
        scale=scale,
    )
