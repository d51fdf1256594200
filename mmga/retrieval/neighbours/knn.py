"""Exact nearest neighbours by tiles of the distance matrix, which is never held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.ops.distance import METRICS
from mmga.ops.neighbours import NearestLists, Neighbours
from mmga.ops.precision import float32_products
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.neighbours.vectors import Items, tile_on
from mmga.retrieval.tiles.sources import tile_height


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
    height = width = tile_on(queries.device, max(len(queries), len(items)), items.dimension)
    if queries.device.type != "cpu":  # where products need not be of one shape in sets of any size
        height = min(height, tile_height(len(queries), height))
    # The items, of which there are usually more and which may lie on disk, are read once.
    places = [
        (own, first)
        for first in range(0, len(items), width)
        for own in range(0, len(queries), height)
    ]
    tiles = _Tiles(queries, items, height, width)
    for done, (own, first, products) in enumerate(tiles.along(places), 1):
        lists.add(*products, own, first, cosine=tiles.cosine)
        if progress is not None:
            progress("neighbours", done, len(places))
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
    n = len(items)
    size = tile or tile_on(items.device, n, items.dimension)
    lists = NearestLists(n, k, items.device)
    lists.add_self()
    starts = range(0, n, size)
    # Tiles on the diagonal come first: they bound what the others need to offer.
    places = [(own, own) for own in starts]
    places += [(own, other) for own in starts for other in range(own + size, n, size)]
    tiles = _Tiles(items, items, size, size, upper=tile is not None)
    for done, (own, other, products) in enumerate(tiles.along(places), 1):
        lists.add(*products, own, other, cosine=tiles.cosine, symmetric=True, kept=kept)
        if progress is not None:
            progress("neighbours", done, len(places))
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


Products = tuple[Tensor, Tensor, Tensor]
"""A tile of inner products [R, C], and what its rows [R] and columns [C] add to distances."""


class _Tiles:
    """Tiles of inner products in one buffer, every product of one shape and call form.

    With `upper` tiles of a set with itself are of two products, which leave out a quarter that lies
    below the diagonal: quicker, but of other shapes.
    """

    def __init__(
        self, rows: Items, columns: Items, height: int, width: int, *, upper: bool = False
    ) -> None:
        self._rows, self._columns, self._height, self._width = rows, columns, height, width
        self._half = height // 32 * 16 if upper else 0
        self.cosine = rows.metric == "cosine"
        device, dimension = rows.device, rows.dimension
        self._row_block = torch.empty((height, dimension), device=device)
        self._tile = torch.empty((height, width), device=device)
        self._held: tuple[int, Tensor] | None = None

    def along(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Products]]:
        """Yield the tiles that begin at the given rows and columns; each until the next one."""
        runs = [(first, min(first + self._width, len(self._columns))) for _, first in places]
        blocks = self._columns.blocks(runs, self._width)
        for (row, column), others in zip(places, blocks, strict=True):
            yield row, column, self._products(row, column, others)

    def _products(self, row: int, column: int, others: Tensor) -> Products:
        row_end = min(row + self._height, len(self._rows))
        column_end = min(column + self._width, len(self._columns))
        if self._held is None or self._held[0] != row:
            self._held = row, self._rows.block(row, row_end, self._row_block)
        mine, half = self._held[1], self._half
        if half and row == column:
            torch.mm(mine[:half], others.t(), out=self._tile[:half])
            torch.mm(mine[half:], others[half:].t(), out=self._tile[half:, half:])
        else:
            torch.mm(mine, others.t(), out=self._tile)
        return (
            self._tile[: row_end - row, : column_end - column],
            self._rows.terms[row:row_end],
            self._columns.terms[column:column_end],
        )
