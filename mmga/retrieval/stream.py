"""Tiles of the distances between queries and gallery, computed once and never kept together.

A `Source` hands out tiles of ranking keys for the queries and items of a `Selection`; the pass over
them (`mmga.retrieval.passes`) counts ranks, whatever the tiles are made from: inner products of
features, a given matrix, re-ranked distances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmga.errors import UserError
from mmga.ops import distance
from mmga.ops.ranking import Tile
from mmga.ops.reference import ranking_keys
from mmga.retrieval import memory as memory_sizes
from mmga.retrieval.protocol import Pairs
from mmga.retrieval.rows import Rows

# Queries x items of one product. 256 rows keep the BLAS at its full rate, 2 MB stay in a cache.
TILE = (256, 2048)
# "Narrower products take other code paths in a BLAS, whose last bits differ."
NARROWEST = 64
# Products of one block of queries with the whole gallery are kept where they take no more than this
# (a last-level cache); then no product has to be computed ahead for the matches.
KEPT_BYTES = 24 << 20
# Float32 copies of queries that one sweep over the gallery serves.
QUERY_BYTES = 64 << 20


class Source(Protocol):
    """Where tiles come from.

    Attributes:
        columns: number of gallery items.
        max_rows: queries that `match_keys` and `tiles` may be asked for at once.
    """

    columns: int
    max_rows: int

    def match_keys(self, pairs: Pairs) -> Tensor:
        """Return the keys of the matches of `pairs`, [M] float32 or float64.

        Called before `tiles` of the same queries. The pass compares every key with its tile's.
        """
        ...

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield every pair of queries start to stop and all items once, in any order.

        The slice says which queries a tile's rows are, counted from `start`. A tile's memory is
        used again for the next one.
        """
        ...


def round_up(count: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `count`."""
    return -(-count // step) * step


class FeatureSource:
    """Tiles of inner products of features, each from one product of a fixed shape.

    Gallery blocks are the outer loop: each is read, and widened to float32, once for as many
    queries as fit `QUERY_BYTES`. Where a small float32 gallery lies in one piece, blocks of queries
    are the outer loop, and the products of one block are kept until its matches are counted.
    """

    def __init__(
        self,
        query: Rows,
        query_rows: np.ndarray,
        query_norms: Tensor,
        gallery: Rows,
        gallery_rows: np.ndarray,
        gallery_norms: Tensor,
        metric: str,
        device: torch.device | None = None,
        memory: int | None = None,
        tile: tuple[int, int] = TILE,
    ) -> None:
        """Take the rows of a selection.

        Args:
            query: the query features.
            query_rows: the rows that are ranked, int64 [Q'].
            query_norms: squared norms of all query rows, float64 [Q].
            gallery: the gallery features.
            gallery_rows: the rows that take part, ascending int64 [G'].
            gallery_norms: float64 [G].
            metric: cosine or euclidean.
            device: where products are computed; where the gallery lies if None.
            memory: bytes that may be allocated here.
            tile: queries x items of one product.

        Raises:
            UserError: `memory` does not suffice for one tile.
        """
        self._query, self._query_rows = query, torch.from_numpy(query_rows)
        self._gallery, self._gallery_rows = gallery, torch.from_numpy(gallery_rows)
        self._device = device or gallery.device
        self.columns = len(gallery_rows)
        self._metric = distance.metric_number(metric)
        self._row_term = distance.key_terms(query_norms[query_rows], metric).to(self._device)
        self._column_term = distance.key_terms(gallery_norms[gallery_rows], metric).to(self._device)
        self._height = min(round_up(tile[0], NARROWEST), round_up(len(query_rows), NARROWEST))
        self._width = min(round_up(tile[1], NARROWEST), round_up(self.columns, NARROWEST))
        dimension = gallery.shape[1]
        # One gallery block, one for the matches' items, one tile, and queries row by row.
        fixed = 4 * (2 * self._width * dimension + self._height * self._width)
        smallest = fixed + 4 * self._height * dimension
        room = QUERY_BYTES if memory is None else min(QUERY_BYTES, memory - fixed)
        if memory is not None and memory < smallest:
            raise UserError(
                f"memory: {memory_sizes.spell(memory)} cannot hold one tile of "
                f"{self._height} x {self._width} and its features; give at least "
                f"{memory_sizes.spell(smallest)}"
            )
        tiles = max(1, room // (4 * self._height * dimension))
        self.max_rows = tiles * self._height
        blocks = -(-self.columns // self._width)
        self._kept: Tensor | None = None
        self._kept_rows: tuple[int, int] | None = None
        kept_bytes = 4 * blocks * self._height * self._width
        in_one_piece = (
            gallery.dtype == torch.float32
            and len(gallery.shards) == 1
            and int(gallery_rows[-1]) - int(gallery_rows[0]) + 1 == self.columns
        )
        allowed = KEPT_BYTES if memory is None else min(KEPT_BYTES, memory - smallest)
        if in_one_piece and kept_bytes <= allowed:
            self.max_rows = self._height
            self._kept = torch.empty(blocks, self._height, self._width, device=self._device)
        self._tail: Tensor | None = None
        self._tile = torch.empty(
            0 if self._kept is not None else self._height, self._width, device=self._device
        )
        self._block: Tensor | None = None
        self._loaded: tuple[int, int, Tensor] | None = None

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles gallery block by gallery block."""
        if self._kept is not None:
            yield from self._kept_tiles(start, stop)
            return
        queries = self._queries(start, stop)
        for left in range(0, self.columns, self._width):
            right = min(left + self._width, self.columns)
            block = self._items(left, right).T  # [D, W]
            for top in range(0, stop - start, self._height):
                bottom = min(top + self._height, stop - start)
                torch.mm(queries[top : top + self._height], block, out=self._tile)
                yield (
                    slice(top, bottom),
                    Tile(
                        self._tile[: bottom - top, : right - left],
                        left,
                        self._metric,
                        self._row_term[start + top : start + bottom],
                        self._column_term[left:right],
                    ),
                )

    def _kept_tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        assert self._kept is not None
        if self._kept_rows != (start, stop):
            queries = self._queries(start, stop)
            for number, left in enumerate(range(0, self.columns, self._width)):
                right = min(left + self._width, self.columns)
                torch.mm(queries, self._items(left, right).T, out=self._kept[number])
            self._kept_rows = (start, stop)
        for number, left in enumerate(range(0, self.columns, self._width)):
            right = min(left + self._width, self.columns)
            yield (
                slice(0, stop - start),
                Tile(
                    self._kept[number, : stop - start, : right - left],
                    left,
                    self._metric,
                    self._row_term[start:stop],
                    self._column_term[left:right],
                ),
            )

    def _kept_keys(self, pairs: Pairs) -> Tensor:
        """Read the keys of the matches from the kept tiles."""
        sizes = torch.from_numpy(np.diff(pairs.match_start))
        row = torch.repeat_interleave(torch.arange(pairs.stop - pairs.start), sizes)
        row, item = row.to(self._device), torch.from_numpy(pairs.match_item).to(self._device)
        for _ in self._kept_tiles(pairs.start, pairs.stop):
            break  # computes all of them
        assert self._kept is not None
        values = self._kept[item // self._width, row, item % self._width]
        return ranking_keys(
            values, self._row_term[pairs.start + row], self._column_term[item], self._metric
        )

    def match_keys(self, pairs: Pairs) -> Tensor:
        """Compute products of each run of queries with the items that match any of them.

        Queries of one identity stand together, so these products are few. Their shape differs from
        the tiles'; the pass checks every key against its tile and, should a BLAS round the two
        differently, reads the keys from the tiles instead.
        """
        if self._kept is not None:
            return self._kept_keys(pairs)
        queries = self._queries(pairs.start, pairs.stop)
        keys = torch.empty(len(pairs.match_item), device=self._device)
        item = torch.from_numpy(pairs.match_item)
        start = pairs.match_start.tolist()
        for top in range(0, pairs.stop - pairs.start, NARROWEST):
            bottom = min(top + NARROWEST, pairs.stop - pairs.start)
            first, last = start[top], start[bottom]
            if first == last:
                continue
            items, column = torch.unique(item[first:last], return_inverse=True)
            row = torch.repeat_interleave(
                torch.arange(bottom - top),
                torch.from_numpy(np.diff(pairs.match_start[top : bottom + 1])),
            )
            for left in range(0, len(items), self._width):
                right = min(left + self._width, len(items))
                block = self._gather(items[left:right])
                products = queries[top : top + NARROWEST] @ block.T
                here = (column >= left) & (column < right)
                tile = Tile(
                    products,
                    0,
                    self._metric,
                    self._row_term[pairs.start + top : pairs.start + bottom],
                    self._column_term[items[left:right].to(self._device)],
                )
                at = torch.nonzero(here).squeeze(1)
                keys[(first + at).to(self._device)] = tile.at(
                    row[at].to(self._device), (column[at] - left).to(self._device)
                )
        return keys

    def _queries(self, start: int, stop: int) -> Tensor:
        """Return queries as float32, with zero rows up to whole tiles."""
        if self._loaded is None or self._loaded[:2] != (start, stop):
            self._loaded = None
            rows = torch.empty(
                round_up(stop - start, self._height),
                self._query.shape[1],
                device=self._query.device,
            )
            self._query.take(self._query_rows[start:stop], rows)
            self._loaded = (start, stop, rows.to(self._device))
        return self._loaded[2]

    def _items(self, left: int, right: int) -> Tensor:
        """Return gallery items as float32 [tile width, D], with zero rows at the end."""
        rows = self._gallery_rows[left:right]
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first != right - left:
            return self._gather(rows, positions=False)
        if right - left == self._width and self._gallery.dtype == torch.float32:
            return self._gallery.block(first, last).to(self._device)
        if self._kept is not None:  # the last, incomplete block, wanted for every block of queries
            if self._tail is None:
                self._tail = self._gallery.block(first, last, self._buffer()).to(self._device)
            return self._tail
        return self._gallery.block(first, last, self._buffer()).to(self._device)

    def _gather(self, items: Tensor, positions: bool = True) -> Tensor:
        """Return some items as float32, with zero rows up to a multiple of `NARROWEST`."""
        rows = self._gallery_rows[items] if positions else items
        height = round_up(len(rows), NARROWEST) if positions else self._width
        return self._gallery.take(rows, self._buffer()[:height]).to(self._device)

    def _buffer(self) -> Tensor:
        if self._block is None:
            self._block = torch.empty(
                self._width, self._gallery.shape[1], device=self._gallery.device
            )
        return self._block


class MatrixSource:
    """Tiles of a given distance matrix: some of its rows, all of its columns."""

    def __init__(
        self,
        matrix: Tensor,
        query_rows: np.ndarray,
        gallery_rows: np.ndarray,
        max_rows: int = 256,
    ) -> None:
        """Take the rows and columns of a selection.

        Args:
            matrix: float32 or float64 [Q, G].
            query_rows: the rows that are ranked, int64 [Q'].
            gallery_rows: the columns that take part, ascending int64 [G'].
            max_rows: queries of one tile.
        """
        self._matrix = matrix
        self._query_rows = torch.from_numpy(query_rows)
        self._gallery_rows = torch.from_numpy(gallery_rows)
        self.columns = len(gallery_rows)
        self.max_rows = max_rows
        self._every_column = self.columns == matrix.shape[1]
        self._loaded: tuple[int, int, Tensor] | None = None

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield one tile."""
        yield slice(0, stop - start), Tile.of_keys(self._rows(start, stop))

    def match_keys(self, pairs: Pairs) -> Tensor:
        """Read the keys from the matrix."""
        row = torch.repeat_interleave(
            torch.arange(pairs.stop - pairs.start), torch.from_numpy(np.diff(pairs.match_start))
        ).to(self._matrix.device)
        item = torch.from_numpy(pairs.match_item).to(self._matrix.device)
        return self._rows(pairs.start, pairs.stop)[row, item]

    def _rows(self, start: int, stop: int) -> Tensor:
        if self._loaded is None or self._loaded[:2] != (start, stop):
            rows = self._query_rows[start:stop]
            first, last = int(rows[0]), int(rows[-1]) + 1
            in_order = last - first == stop - start and bool((rows.diff() > 0).all())
            values = self._matrix[first:last] if in_order else self._matrix[rows]
            if not self._every_column:
                values = values[:, self._gallery_rows]
            if values.stride(1) != 1:
                values = values.contiguous()
            self._loaded = (start, stop, values)
        return self._loaded[2]


Progress = Callable[[str, int, int], None]
