"""Exact nearest neighbours by tiles of the distance matrix, which is never held."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmga.errors import UserError
from mmga.ops.distance import METRICS
from mmga.ops.neighbours import NearestLists, Neighbours
from mmga.ops.precision import float32_products
from mmga.progress import Progress
from mmga.retrieval.items import TILE, Items, tile_on
from mmga.retrieval.rows import Rows


@float32_products()
def nearest(
    query: Any, gallery: Any, k: int, metric: str = "cosine", *, progress: Progress | None = None
) -> tuple[Any, Any]:
    """Return the k nearest gallery items of every query, in the order of (distance, index).

    Exact: all distances are computed, by tiles, and none is kept but the k best.

    Args:
        query: `Features`, or a tensor or array [Q, D].
        gallery: likewise, [G, D]; files that are memory-mapped are read once.
        k: at least 1; at most G.
        metric: "cosine" (1 - cos, 1 for a zero vector) or "euclidean" (not squared).
        progress: called as (phase, done, total).

    Returns:
        distances float32 [Q, k] and indices int64 [Q, k]; arrays if `query` is an array.

    Raises:
        UserError: k is out of range, widths differ, or a value is NaN or infinite.
    """
    check_metric(metric)
    queries = Items([feature_rows(query, "query")], metric)
    items = Items([feature_rows(gallery, "gallery")], metric)
    if items.dimension != queries.dimension:
        raise UserError(
            f"query and gallery must have one dimension, got {queries.dimension} and "
            f"{items.dimension}"
        )
    if not 1 <= k <= len(items):
        raise UserError(f"k must be from 1 to the {len(items)} gallery items, got {k}")
    found = nearest_items(queries, items, k, progress)
    distances = found.distances / 2 if metric == "cosine" else found.distances.sqrt()
    index = found.index.long()
    if isinstance(query, np.ndarray):
        return distances.cpu().numpy(), index.cpu().numpy()
    return distances, index


def nearest_items(
    queries: Items, items: Items, k: int, progress: Progress | None = None
) -> Neighbours:
    """Return the k nearest items of every query, squared distances, and each query's largest."""
    lists = NearestLists(len(queries), k, queries.device)
    tiles = _Tiles(queries, items, TILE)
    total = -(-len(queries) // TILE) * -(-len(items) // TILE)
    done = 0
    # The items, of which there are usually more and which may lie on disk, are read once.
    for first in range(0, len(items), TILE):
        for own in range(0, len(queries), TILE):
            lists.add(*tiles.products(own, first), own, first, cosine=tiles.cosine)
            done += 1
            if progress is not None:
                progress("neighbours", done, total)
    return lists.result()


def neighbours_within(
    items: Items,
    k: int,
    progress: Progress | None = None,
    kept: Tensor | None = None,
    tile: int | None = None,
) -> Neighbours:
    """Return the k nearest of every item among all, itself included at distance 0.

    Every pair is computed once, in a tile on or above the diagonal, and offered to both its items.

    Args:
        items: N items.
        k: 1 to N.
        progress: called as (phase, done, total).
        kept: [Q, N - Q] float32, filled with the squared distances of the first Q items to the
            others; None where they are not wanted.
        tile: rows and columns of a tile; `TILE` if None, with which a BLAS that rounds by shape
            gives one pair the same distance in sets of any size.

    Returns:
        Lists in the order of (distance, index), and each item's largest distance.
    """
    n, size = len(items), tile or tile_on(items.device)
    blocks = -(-n // size)
    lists = NearestLists(n, k, items.device)
    lists.add_self()
    tiles = _Tiles(items, items, size)
    total = blocks * (blocks + 1) // 2
    starts = range(0, n, size)
    # Tiles on the diagonal come first: they bound what the others need to offer.
    diagonal = ((own, own) for own in starts)
    beside = ((own, other) for own in starts for other in range(own + size, n, size))
    for done, (own, other) in enumerate(itertools.chain(diagonal, beside), 1):
        products = tiles.products(own, other)
        lists.add(*products, own, other, cosine=tiles.cosine, symmetric=True, kept=kept)
        if progress is not None:
            progress("neighbours", done, total)
    return lists.result()


def feature_rows(value: Any, name: str) -> Rows:
    """Return the rows of `Features`, a tensor or an array.

    Raises:
        UserError: it is something else, or not two-dimensional.
    """
    rows = getattr(value, "rows", None)
    if not isinstance(rows, Rows):
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(
                f"{name} must be Features, or a tensor or array [N, D] of floating-point numbers, "
                f"got {type(value).__name__}"
            )
        if tensor.dtype not in (torch.float16, torch.float32):
            tensor = tensor.float()
        rows = Rows([tensor.detach()])
    if len(rows.shape) != 2:
        raise UserError(f"{name} must be [N, D], got {list(rows.shape)}")
    return rows


def check_metric(metric: str) -> None:
    """Raise a `UserError` unless the metric is one of ours."""
    if metric not in METRICS:
        raise UserError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")


class _Tiles:
    """Tiles of inner products in one buffer, every product of one shape and call form."""

    def __init__(self, rows: Items, columns: Items, size: int) -> None:
        self._rows, self._columns, self._size = rows, columns, size
        self.cosine = rows.metric == "cosine"
        device = rows.device
        self._row_block = torch.empty((size, rows.dimension), device=device)
        self._column_block = torch.empty((size, rows.dimension), device=device)
        self._tile = torch.empty((size, size), device=device)
        self._held: tuple[int, Tensor] | None = None

    def products(self, row: int, column: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tile that begins at this row and column, and the terms of both its sides.

        The tile is valid until the next call.
        """
        row_end = min(row + self._size, len(self._rows))
        column_end = min(column + self._size, len(self._columns))
        if self._held is None or self._held[0] != row:
            self._held = row, self._rows.block(row, row_end, self._row_block)
        others = self._columns.block(column, column_end, self._column_block)
        torch.mm(self._held[1], others.t(), out=self._tile)
        return (
            self._tile[: row_end - row, : column_end - column],
            self._rows.terms[row:row_end],
            self._columns.terms[column:column_end],
        )
