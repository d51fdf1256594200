"""Distances of part features: the mean over parts, weighted by their visibility on both sides."""

from __future__ import annotations

from torch import Tensor

from mmga.ops import reference
from mmga.ops._library import define, refuse_gradient


def part_keys(
    products: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    metric: int,
    keys: Tensor,
) -> None:
    """Write the distances of a tile to `keys` (`reference.part_keys`).

    Args:
        products: float32 [P, R, W], inner products of every part.
        row_term: float32 [P, R], see `distance.key_terms`.
        column_term: float32 [P, W].
        row_weight: float32 [P, R], visibility.
        column_weight: float32 [P, W].
        metric: place in `reference.METRICS`, cosine or euclidean.
        keys: float32 [R, W].

    Raises:
        ValueError: a gradient is required.
    """
    refuse_gradient("part_keys", products)
    _PART_KEYS(products, row_term, column_term, row_weight, column_weight, metric, keys)


def _part_keys_fake(*inputs: object) -> None:
    return None


_PART_KEYS = define(
    "part_keys(Tensor products, Tensor row_term, Tensor column_term, Tensor row_weight, "
    "Tensor column_weight, int metric, Tensor(a!) keys) -> ()",
    reference.part_keys,
    _part_keys_fake,
)
