"""Encodings V of a set of which each process of a group holds some vectors.

Neighbour lists, and the encodings before the k2-mean, are gathered by every process: some hundred
bytes an item. Features are not.
"""

from __future__ import annotations

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
    group, index = items.group, items.rows_of_all(found.index)
    maxima = items.rows_of_all(found.maxima)
    neighbours = Neighbours(index, items.rows_of_all(found.distances), maxima)
    with group.together():
        sets = expanded_sets(neighbours, rule, items.numbers)
    distances = set_distances(sets, neighbours, items.pair_distances)
    del neighbours
    with group.together():
        rows = ops.encode(sets, *encoded_distances(distances, maxima, rule))
        del sets, distances
    rows = items.csr_of_all(rows)
    with group.together():
        return averaged(rows, index, rule, wanted), maxima
