"""Exact nearest neighbours: bounded selection from rows or tiles of distances.

Specified by the functions of the same names in `mmga.ops.reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.ops import _library, reference

_nearest_in_rows = _library.define(
    "nearest_in_rows(Tensor distances, int k) -> (Tensor, Tensor)",
    reference.nearest_in_rows,
    lambda distances, k: (
        distances.new_empty(distances.shape[0], k),
        distances.new_empty((distances.shape[0], k), dtype=torch.int32),
    ),
)
_select_neighbours = _library.define(
    "select_neighbours(Tensor(a!) candidates, Tensor(b!) counts, Tensor(c!) thresholds,"
    " Tensor(d!) maxima, Tensor(e!)? kept, Tensor products, Tensor row_term, Tensor column_term,"
    " bool cosine, int k, int first_item, int first_other, bool symmetric) -> ()",
    reference.select_neighbours,
)
_ordered_candidates = _library.define(
    "ordered_candidates(Tensor candidates, Tensor counts, int k) -> (Tensor, Tensor)",
    reference.ordered_candidates,
    lambda candidates, counts, k: (
        candidates.new_empty((candidates.shape[0], k), dtype=torch.int32),
        candidates.new_empty((candidates.shape[0], k), dtype=torch.float32),
    ),
)
_squared_distances_ = _library.define(
    "squared_distances_(Tensor(a!) tile, Tensor row_term, Tensor column_term, bool cosine) -> ()",
    reference.squared_distances_,
)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The k nearest of every item, nearest first in the order of (distance, index).

    Attributes:
        index: [N, K] int32.
        distances: [N, K] squared distances.
        maxima: [N], the largest distance of each item to any.
    """

    index: Tensor
    distances: Tensor
    maxima: Tensor


def nearest_in_rows(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest entries of each row in the order of (distance, index).

    Raises:
        ValueError: k is out of range, or the distances require a gradient.
    """
    _library.refuse_gradient("nearest_in_rows", distances)
    if not 1 <= k <= distances.shape[1]:
        raise ValueError(f"k must be from 1 to the {distances.shape[1]} columns given, got {k}")
    near: tuple[Tensor, Tensor] = _nearest_in_rows(distances, k)
    return near


def squared_distances_(
    tile: Tensor, row_term: Tensor, column_term: Tensor, *, cosine: bool
) -> None:
    """Turn a tile of inner products into squared distances >= 0 in place."""
    _squared_distances_(tile, row_term, column_term, cosine)


class NearestLists:
    """The k nearest of N items, gathered from tiles of inner products that come in any order.

    Memory: N (2k + 16) candidates of 8 bytes.
    """

    def __init__(self, items: int, k: int, device: torch.device | str = "cpu") -> None:
        """Start with empty lists of k for so many items."""
        self.k = k
        slots = 2 * k + 16
        self._candidates = torch.empty((items, slots), dtype=torch.int64, device=device)
        self._counts = torch.zeros(items, dtype=torch.int32, device=device)
        self._thresholds = torch.full((items,), math.inf, dtype=torch.float32, device=device)
        self._maxima = torch.zeros(items, dtype=torch.float32, device=device)

    def add_self(self) -> None:
        """Insert every item into its own list at distance 0, before any symmetric tile."""
        if self._counts.any():
            raise RuntimeError("add_self comes before the first tile")
        self._candidates[:, 0] = torch.arange(len(self._counts), device=self._counts.device)
        self._counts.fill_(1)

    def add(
        self,
        products: tuple[Tensor, Tensor, Tensor],
        first_item: int,
        first_other: int,
        *,
        cosine: bool,
        symmetric: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        """Insert the squared distances of a tile into its items' lists.

        The arguments are those of `reference.select_neighbours`; `products` are the inner products
        and the terms of rows and columns.
        """
        _select_neighbours(
            self._candidates,
            self._counts,
            self._thresholds,
            self._maxima,
            kept,
            *products,
            cosine,
            self.k,
            first_item,
            first_other,
            symmetric,
        )

    def result(self) -> Neighbours:
        """Return the lists in order; each item must have at least k candidates."""
        if int(self._counts.min()) < self.k:
            raise RuntimeError(f"an item was offered fewer than {self.k} candidates")
        index, distances = _ordered_candidates(self._candidates, self._counts, self.k)
        return Neighbours(index, distances, self._maxima)
