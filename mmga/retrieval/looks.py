"""Items at the levels of a certified neighbour search: rows of tiles, and integers of 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.retrieval.items import TILE, Items
from mmga.retrieval.search_tiles import Tiles
from mmga.retrieval.subspace import Approximation, Bytes, Subspace, as_integers, as_they_are


class Looks:
    """All items as the tiles of a search take them.

    Attributes:
        items: the items themselves.
        tiles: what tiles come from.
        tile: rows and columns of a tile.
        terms: [N] float32, what an item adds to a tile's squared distance.
    """

    def __init__(self, items: Items, tiles: Tiles, tile: int) -> None:
        """Make coordinates, if tiles come from them; other rows are made as they are asked for."""
        self.items, self.tiles, self.tile = items, tiles, tile
        self.terms = items.terms
        if tiles is not None and items.metric == "cosine":
            self.terms = torch.ones_like(items.terms)  # what stands for features is normalised
        n = len(items)
        self._rows: Tensor | None = None  # coordinates, made once
        self._held: tuple[int, int, Approximation] | None = None
        if isinstance(tiles, Subspace):
            self._rows = torch.empty(n, tiles.directions.shape[1])
            parts = [self._coordinates(b, min(b + TILE, n), self._rows) for b in range(0, n, TILE)]
            self._radius = torch.cat([part.radius for part in parts])
            self._slack = torch.cat([part.slack for part in parts])

    def _coordinates(self, begin: int, end: int, rows: Tensor) -> Approximation:
        assert isinstance(self.tiles, Subspace)
        block, norms = self.items.block(begin, end).contiguous(), self.items.norms[begin:end]
        self.tiles.coordinates(block, norms, self.items.metric, rows[begin:end])
        return self.tiles.approximate(rows[begin:end], norms, self.items.metric)

    def cut(self, begin: int, end: int) -> Approximation:
        """Return some items."""
        if self._rows is not None:
            part = slice(begin, end)
            return Approximation(self._rows[part], self._radius[part], self._slack[part])
        return self._made(self.items.block(begin, end), self.items.norms[begin:end])

    def own(self, begin: int, end: int) -> Approximation:
        """Return the items of a tile's rows, as `cut`, but kept for the tiles beside it."""
        if self._held is None or self._held[:2] != (begin, end):
            self._held = begin, end, self.cut(begin, end)
        return self._held[2]

    def take(self, items: Tensor) -> Approximation:
        """Return the items of these numbers, int64 [K]."""
        if self._rows is not None:
            return Approximation(self._rows[items], self._radius[items], self._slack[items])
        return self._made(self.items.take(items), self.items.norms[items])

    def _made(self, rows: Tensor, norms: Tensor) -> Approximation:
        if isinstance(self.tiles, Bytes):
            return self.tiles.approximate(rows.contiguous(), norms, self.items.metric)
        return as_they_are(rows, norms, self.items.metric)

    def integers(self, items: slice) -> Approximation:
        """Return some items as integers of 16 bits."""
        rows = self.items.block(items.start, items.stop).contiguous()
        return as_integers(rows, self.items.norms[items], self.items.metric)
