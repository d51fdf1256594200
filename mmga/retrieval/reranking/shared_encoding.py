"""Encodings V of a set of which each process of a group holds some vectors.

Neighbour lists, and the encodings before the k2-mean, are gathered by every process: some hundred
bytes an item. Features are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmga.ops import k_reciprocal as ops
from mmga.ops.k_reciprocal import CsrRows
from mmga.ops.neighbours import Neighbours
from mmga.retrieval.neighbours.shared_set import SharedSet
from mmga.retrieval.reranking.encode import (
    averaged,
    encoded_distances,
    expanded_sets,
    set_distances,
)
from mmga.retrieval.reranking.settings import KReciprocal


def encode_shared(
    items: SharedSet, found: Neighbours, rule: KReciprocal, wanted: Tensor
) -> tuple[CsrRows, Tensor]:
    """Return what `encode` makes of all vectors, of the rows that are wanted.

    Args:
        items: N vectors.
        found: the nearest of those that this process holds, at least `rule.neighbours_needed(N)`.
        rule: k1, k2, variant and half list.
        wanted: numbers of the vectors whose rows this process wants, int64 [M].

    Returns:
        V, [N, N], of which other rows are empty; and each vector's largest squared distance,
        float32 [N].
    """
    return encode_sets(items, sets_of_own(items, found, rule), rule, wanted)


@dataclass(frozen=True, slots=True)
class SetsOfOwn:
    """Expanded k-reciprocal sets of the vectors that a process holds.

    Attributes:
        index: neighbours of all vectors, int32 [N, K].
        maxima: largest squared distance of each of them, float32 [N].
        sets: offsets [N + 1] and columns; those of others are empty.
        distances: squared, of each entry, float64.
    """

    index: Tensor
    maxima: Tensor
    sets: tuple[Tensor, Tensor]
    distances: Tensor


def sets_of_own(items: SharedSet, found: Neighbours, rule: KReciprocal) -> SetsOfOwn:
    """Return the expanded sets of the vectors held here; arguments are those of `encode_shared`."""
    index, maxima = items.rows_of_all(found.index), items.rows_of_all(found.maxima)
    neighbours = Neighbours(index, items.rows_of_all(found.distances), maxima)
    with items.group.together():
        sets = expanded_sets(neighbours, rule, items.numbers)
    distances = set_distances(sets, neighbours, items.pair_distances)
    return SetsOfOwn(index, maxima, sets, distances)


def encode_sets(
    items: SharedSet, graph: SetsOfOwn, rule: KReciprocal, wanted: Tensor
) -> tuple[CsrRows, Tensor]:
    """Return what `encode_shared` returns, from the sets."""
    group, index, maxima = items.group, graph.index, graph.maxima
    with group.together():
        rows = ops.encode(graph.sets, *encoded_distances(graph.distances, maxima, rule))
        del graph
    rows = items.csr_of_all(rows)
    with group.together():
        return averaged(rows, index, rule, wanted), maxima
