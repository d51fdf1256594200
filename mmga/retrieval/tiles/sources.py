"""Tiles of the distances between queries and gallery, computed once and never kept together.

A `Source` hands out tiles of ranking keys for the queries and items of a `Selection`; the pass over
them (`mmga.retrieval.metrics.rank`) counts ranks, whatever the tiles are made from: inner products
of features, a given matrix, re-ranked distances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mmga.common import memory as memory_sizes
from mmga.common.errors import UserError
from mmga.ops import distance
from mmga.ops.ranking import Tile
from mmga.ops.reference import ranking_keys
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.protocols.protocol import Pairs
from mmga.retrieval.tiles.transfer import BlockTransfer

# At most so many queries x items in one product: high enough for the BLAS' full rate and few calls,
# small enough for a last-level cache.
TILE = (1152, 2048)
# The same on devices, which smaller products leave idle: 128 MiB of float32, halved on small
# devices, down to the CPU's.
DEVICE_TILE = (4096, 8192)
# On a device: products of whole rows that are held together, and the fewest rows worth a product.
HELD_BYTES = 1 << 30
LEAST_ROWS = 512
# "Narrower products take other code paths in a BLAS, whose last bits differ."
NARROWEST = 64
# Float32 copies of queries that one sweep over the gallery serves.
QUERY_BYTES = 64 << 20


class Source(Protocol):
    """Where tiles come from; tiles hold all items of their queries, but for a `BlockSource`.

    Attributes:
        columns: number of gallery items.
        max_rows: queries that are best asked for at once; the most that a `BlockSource` takes.
        device: where tiles are.
        dtype: of their values.
    """

    columns: int
    max_rows: int
    device: torch.device
    dtype: torch.dtype

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield every pair of queries start to stop and all items once, in any order.

        The slice says which queries a tile's rows are, counted from `start`. A tile's memory is
        used again for the next one.
        """
        ...


@runtime_checkable
class BlockSource(Source, Protocol):
    """A source whose tiles hold some items of their queries: it gives the matches' keys ahead."""

    def match_keys(self, pairs: Pairs, whole_tiles: bool = False) -> Tensor:
        """Return the keys of the matches of `pairs`, [M] of the source's dtype.

        The pass compares each key with its tile's. `whole_tiles` asks for products of the very
        shape of the tiles, for a BLAS that rounds by shape.
        """
        ...


def round_up(count: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `count`."""
    return -(-count // step) * step


def tile_height(num_query: int, most: int = TILE[0]) -> int:
    """Return the height of equal tiles of at most about `most` rows that hold all queries."""
    tiles = -(-num_query // most)
    return round_up(-(-num_query // tiles), NARROWEST)


class FeatureBlocks:
    """What tiles of features are made from: queries, blocks of the gallery, and their key terms.

    A block that lies elsewhere is copied to the device while the one before is used.
    """

    dtype = torch.float32

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
        self.device = device or gallery.device
        self.columns = len(gallery_rows)
        self._metric = distance.metric_number(metric)
        self._row_term = distance.key_terms(query_norms[query_rows], metric).to(self.device)
        self._column_term = distance.key_terms(gallery_norms[gallery_rows], metric).to(self.device)
        self._height = tile_height(len(query_rows), tile[0])
        self._width = min(round_up(tile[1], NARROWEST), round_up(self.columns, NARROWEST))
        self.max_rows = self._queries_within(memory)
        self._tile: Tensor | None = None
        self._block: Tensor | None = None
        self._transfer: BlockTransfer | None = None
        self._loaded: tuple[int, int, Tensor] | None = None

    def _queries_within(self, memory: int | None) -> int:
        """Return how many queries one sweep over the gallery serves, whole tiles of them."""
        # One gallery block (where it is streamed: two), one for the matches' items, one tile, and
        # queries row by row.
        dimension = self._gallery.shape[1]
        blocks = 2 if self._gallery.device == self.device else 3
        row_bytes = 4 * self._height * dimension
        fixed = 4 * (blocks * self._width * dimension + self._height * self._tile_width)
        if memory is not None and memory < fixed + row_bytes:
            raise UserError(
                f"memory: {memory_sizes.spell(memory)} cannot hold one tile of "
                f"{self._height} x {self._tile_width} and its features; give at least "
                f"{memory_sizes.spell(fixed + row_bytes)}"
            )
        room = QUERY_BYTES if memory is None else min(QUERY_BYTES, memory - fixed)
        return max(1, room // row_bytes) * self._height

    @property
    def _tile_width(self) -> int:
        """Columns of the tiles that are handed out, padding included."""
        return self._width

    def _tile_buffer(self) -> Tensor:
        if self._tile is None:
            self._tile = torch.empty(self._height, self._tile_width, device=self.device)
        return self._tile

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
            self._loaded = (start, stop, rows.to(self.device))
        return self._loaded[2]

    def _blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield every block of the gallery once.

        Yields:
            The first item, the one after the last, and the items as float32 [width, D] with zero
            rows at the end; valid for work queued before the next block is asked for.
        """
        ends = [
            (left, min(left + self._width, self.columns))
            for left in range(0, self.columns, self._width)
        ]
        if self._gallery.device == self.device:
            for left, right in ends:
                yield left, right, self._items(left, right)
            return
        if self._transfer is None:
            self._transfer = BlockTransfer(
                (self._width, self._gallery.shape[1]),
                self._gallery.dtype,
                self.device,
                wanted=torch.float32,
            )

        def read(number: int, out: Tensor) -> int:
            return len(self._items(*ends[number], out))

        blocks = self._transfer.blocks(read, len(ends))
        for (left, right), block in zip(ends, blocks, strict=True):
            yield left, right, block

    def _items(self, left: int, right: int, out: Tensor | None = None) -> Tensor:
        """Return gallery items where they lie, [tile width, D], with zero rows at the end.

        Args:
            left: first item.
            right: item after the last.
            out: where to put them; without it they are float32 and, where that is possible, a view.
        """
        rows = self._gallery_rows[left:right]
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first != right - left:
            return self._gallery.take(rows, self._buffer() if out is None else out)
        whole = right - left == self._width and self._gallery.dtype == torch.float32
        if whole and out is None:
            return self._gallery.block(first, last)
        return self._gallery.block(first, last, self._buffer() if out is None else out)

    def _buffer(self) -> Tensor:
        if self._block is None:
            self._block = torch.empty(
                self._width, self._gallery.shape[1], device=self._gallery.device
            )
        return self._block

    def _tile_of(self, rows: slice, left: int, right: int, values: Tensor) -> Tile:
        """Return products of the queries `rows` of the selection with some items as a tile."""
        count = rows.stop - rows.start
        return Tile(
            values[:count, : right - left],
            left,
            self._metric,
            self._row_term[rows],
            self._column_term[left:right],
        )


class FeatureSource(FeatureBlocks):
    """Tiles of inner products of features, each from one product of a fixed shape.

    Gallery blocks are the outer loop: each is read, and widened to float32, once for as many
    queries as fit `QUERY_BYTES`.
    """

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles gallery block by gallery block."""
        queries, buffer = self._queries(start, stop), self._tile_buffer()
        for left, right, block in self._blocks():
            for top in range(0, stop - start, self._height):
                bottom = min(top + self._height, stop - start)
                torch.mm(queries[top : top + self._height], block.T, out=buffer)
                rows = slice(start + top, start + bottom)
                yield slice(top, bottom), self._tile_of(rows, left, right, buffer)

    def match_keys(self, pairs: Pairs, whole_tiles: bool = False) -> Tensor:
        """Compute products of each run of queries with the items that match any of them.

        Queries of one identity stand together, so these products are few. Their shape differs from
        the tiles'; the pass checks every key against its tile and, should a BLAS round the two
        differently, asks for products of the tiles' own shape instead.
        """
        queries = self._queries(pairs.start, pairs.stop)
        count = pairs.stop - pairs.start
        height = self._height if whole_tiles else min(NARROWEST, self._height)
        item = torch.from_numpy(pairs.match_item)
        row = torch.repeat_interleave(
            torch.arange(count), torch.from_numpy(np.diff(pairs.match_start))
        )
        # The distinct items of every run of `height` queries, and each match's place among them.
        places, place = torch.unique(row // height * self.columns + item, return_inverse=True)
        runs = torch.arange(-(-count // height) + 1)
        first_place = torch.searchsorted(places, runs * self.columns).tolist()
        first_match = pairs.match_start[np.minimum(runs.numpy() * height, count)].tolist()
        items = self._gallery_rows[places % self.columns]
        values = torch.empty(len(item), device=self.device)
        products = torch.empty(height, self._width, device=self.device)
        for run, top in enumerate(range(0, count, height)):
            low, high = first_place[run], first_place[run + 1]
            mine = slice(first_match[run], first_match[run + 1])
            for left in range(low, high, self._width):
                right = min(left + self._width, high)
                width = self._width if whole_tiles else round_up(right - left, NARROWEST)
                block = self._gallery.take(items[left:right], self._buffer()[:width])
                block = block.to(self.device)
                used = products.view(-1)[: height * width].view(height, width)
                torch.mm(queries[top : top + height], block.T, out=used)
                at = (row[mine] - top) * width + (place[mine] - left)
                if (low, high) == (left, right):
                    values[mine] = used.view(-1)[at.to(self.device)]
                else:  # more items than one product takes
                    here = (place[mine] >= left) & (place[mine] < right)
                    values[mine][here.to(self.device)] = used.view(-1)[at[here].to(self.device)]
        return ranking_keys(
            values,
            self._row_term[pairs.start + row.to(self.device)],
            self._column_term[item.to(self.device)],
            self._metric,
        )


class RowSource(FeatureBlocks):
    """Tiles of inner products of some queries with the whole gallery, for devices with room.

    The matches' keys are read from the tile itself: no product is formed twice. On a device that
    rounds by shape a `FeatureSource` would have to count all tiles again.
    """

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles of whole rows."""
        buffer = self._tile_buffer()
        for top in range(start, stop, self._height):
            rows = slice(top, min(top + self._height, stop))
            queries = self._queries(rows.start, rows.stop)
            for left, _, block in self._blocks():
                torch.mm(queries, block.T, out=buffer[:, left : left + self._width])
            yield (
                slice(rows.start - start, rows.stop - start),
                self._tile_of(rows, 0, self.columns, buffer),
            )

    @property
    def _tile_width(self) -> int:
        return round_up(self.columns, self._width)


def tile_within(room: int, dimension: int) -> tuple[int, int]:
    """Return queries x items of one product on a device.

    It and the features of four blocks take at most an eighth of the room, unless that asks for
    tiles smaller than the CPU's.

    Args:
        room: bytes, see `devices.Placement`.
        dimension: width of the features.
    """
    height, width = DEVICE_TILE
    while height > TILE[0] and 4 * (height * width + 4 * width * dimension) > room // 8:
        height, width = height // 2, width // 2
    return height, width


def feature_source(
    query: Rows,
    query_rows: np.ndarray,
    query_norms: Tensor,
    gallery: Rows,
    gallery_rows: np.ndarray,
    gallery_norms: Tensor,
    metric: str,
    device: torch.device,
    memory: int | None = None,
    room: int | None = None,
    tile: tuple[int, int] = TILE,
) -> FeatureSource | RowSource:
    """Return the tiles of features that suit a device; arguments as of `FeatureSource`.

    `room` is that of `devices.Placement`.

    On the CPU these are tiles of `tile`, which stay in the cache. Elsewhere they are whole rows if
    `LEAST_ROWS` of these fit, else blocks: the same whether the gallery lies there or is streamed,
    for a BLAS that rounds by shape.
    """
    sides = (query, query_rows, query_norms, gallery, gallery_rows, gallery_norms, metric, device)
    if room is None:
        return FeatureSource(*sides, memory, tile)
    dimension, count = gallery.shape[1], len(query_rows)
    height, width = tile_within(room, dimension)
    widest = max(round_up(len(gallery_rows), width), dimension)
    rows = min(HELD_BYTES, room // 16) // (4 * widest)
    if rows >= min(count, LEAST_ROWS):
        return RowSource(*sides, memory, (rows, width))
    return FeatureSource(*sides, memory, (height, width))


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
        self.device, self.dtype = matrix.device, matrix.dtype
        self._query_rows = torch.from_numpy(query_rows)
        self._gallery_rows = torch.from_numpy(gallery_rows)
        self.columns = len(gallery_rows)
        self.max_rows = max_rows
        self._every_column = self.columns == matrix.shape[1]
        self._loaded: tuple[int, int, Tensor] | None = None

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles of `max_rows` rows."""
        for top in range(start, stop, self.max_rows):
            bottom = min(top + self.max_rows, stop)
            yield slice(top - start, bottom - start), Tile.of_keys(self._rows(top, bottom))

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
