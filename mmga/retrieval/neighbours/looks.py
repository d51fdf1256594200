"""Items at the levels of a certified neighbour search: rows of tiles, and integers of 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.retrieval.bounds.approximation import Approximation, Tiles, as_integers, as_they_are
from mmga.retrieval.neighbours.vectors import TILE, Items


class Looks:
    """All items as the tiles of a search take them.

    Attributes:
        items: the items themselves.
        tiles: what tiles come from.
        tile: rows and columns of a tile.
        terms: [N] float32, what an item adds to a tile's squared distance.
    """

    def __init__(self, items: Items, tiles: Tiles, tile: int) -> None:
        """Make what stands for the items, once; features stand for themselves where they lie."""
        self.items, self.tiles, self.tile = items, tiles, tile
        self.terms = items.terms
        self._made: Approximation | None = None
        if tiles is None:
            return
        if items.metric == "cosine":
            self.terms = torch.ones_like(items.terms)  # what stands for features is normalised
        parts = []
        for begin in range(0, len(items), TILE):
            end = min(begin + TILE, len(items))
            block = items.block(begin, end).contiguous()
            parts.append(tiles.of(block, items.norms[begin:end], items.metric))
        units = [part.unit for part in parts if part.unit is not None]
        self._made = Approximation(
            torch.cat([part.rows for part in parts]),
            torch.cat([part.radius for part in parts]),
            torch.cat([part.slack for part in parts]),
            torch.cat(units) if units else None,
        )

    def cut(self, begin: int, end: int) -> Approximation:
        """Return some items."""
        if self._made is not None:
            return self._made.cut(slice(begin, end))
        rows, norms = self.items.block(begin, end), self.items.norms[begin:end]
        return as_they_are(rows, norms, self.items.metric)

    def take(self, items: Tensor) -> Approximation:
        """Return the items of these numbers, int64 [K]."""
        if self._made is not None:
            return self._made.cut(items)
        return as_they_are(self.items.take(items), self.items.norms[items], self.items.metric)

    def integers(self, items: slice) -> Approximation:
        """Return some items as integers of 16 bits."""
        rows = self.items.block(items.start, items.stop).contiguous()
        return as_integers(rows, self.items.norms[items], self.items.metric)
