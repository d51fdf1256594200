"""Tiles of the distances between queries and gallery, computed once and never kept together.

A `Source` hands out tiles of ranking keys for the queries and items of a `Selection`; the pass over
them (`mmga.retrieval.metrics.rank`) counts ranks, whatever the tiles are made from: inner products
of features, a given matrix, re-ranked distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.memory import spell
from mmga.ops.distance import metric_number
from mmga.ops.ranking import Tile
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.protocols.selection import Pairs
from mmga.retrieval.tiles.share import QueryShare, Share

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
    """A source of tiles, which hold all items of their queries but for a `BlockSource`.

    Attributes:
        columns: number of gallery items, in a group of processes of those that this one holds.
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

        In a group of processes they are those of the matches that this one holds, and zero else.
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


def rows_within(memory: int | None, fixed: int, height: int, tile_bytes: int, what: str) -> int:
    """Return how many queries one sweep over the gallery serves: whole tiles of them.

    Args:
        memory: bytes that may be allocated, or None.
        fixed: bytes of all but the queries.
        height: queries of a tile.
        tile_bytes: bytes of so many queries.
        what: a tile holds, for the error.

    Raises:
        UserError: `memory` does not suffice for one tile.
    """
    if memory is not None and memory < fixed + tile_bytes:
        raise UserError(
            f"memory: {spell(memory)} cannot hold one tile of {what}; give at least "
            f"{spell(fixed + tile_bytes)}"
        )
    room = QUERY_BYTES if memory is None else min(QUERY_BYTES, memory - fixed)
    return max(1, room // tile_bytes) * height


class FeatureBlocks:
    """Queries and blocks of the gallery, from which tiles of features are made.

    Gallery blocks are the outer loop: each is read, and widened to float32, once for as many
    queries as fit `QUERY_BYTES`. Every product has one fixed shape.
    """

    dtype = torch.float32

    def __init__(
        self,
        queries: VectorSet | QueryShare,
        items: VectorSet | Share,
        memory: int | None = None,
        tile: tuple[int, int] = TILE,
    ) -> None:
        """Take both sides.

        Args:
            queries: the queries that are ranked, or those of them that this process ranks.
            items: the gallery items that take part, or those of them that this process holds.
            memory: bytes that may be allocated here.
            tile: queries x items of one product.

        Raises:
            UserError: `memory` does not suffice for one tile.
        """
        self._share = Share.of(items)
        asked = QueryShare.of(queries)
        self._asked, self._queries = len(asked), asked.vectors
        self._items = self._share.vectors
        self.device, self.columns = self._items.device, len(self._items)
        self._metric = metric_number(self._items.metric)
        self._height = self._tile_height(tile[0])
        self._width = min(round_up(tile[1], NARROWEST), round_up(len(self._share), NARROWEST))
        self.max_rows = self._queries_within(memory)
        self._products: Tensor | None = None
        self._loaded: tuple[int, int, Tensor] | None = None

    def _tile_height(self, most: int) -> int:
        return tile_height(self._asked, most)

    def _queries_within(self, memory: int | None) -> int:
        # One gallery block (where it is streamed: two, and one more where its first items are of
        # another process), one for the matches' items, one tile.
        dimension = self._items.dimension
        blocks = (2 if self._items.near else 3) + (self._share.group.world > 1)
        fixed = 4 * (blocks * self._width * dimension + self._height * self._tile_width)
        what = f"{self._height} x {self._tile_width} and its features"
        return rows_within(memory, fixed, self._height, 4 * self._height * dimension, what)

    @property
    def _tile_width(self) -> int:
        """Columns of the tiles that are handed out, padding included."""
        return self._width

    def _scratch(self, height: int, width: int) -> Tensor:
        """Return memory for products, float32 [height, width], the same at every call."""
        if self._products is None:
            self._products = torch.empty(
                self._height * self._tile_width, dtype=torch.float32, device=self.device
            )
        return self._products[: height * width].view(height, width)

    def _padded(self, start: int, stop: int) -> Tensor:
        """Return queries as float32, with zero rows up to whole tiles."""
        if self._loaded is None or self._loaded[:2] != (start, stop):
            self._loaded = None
            room = (round_up(stop - start, self._height), *self._queries.shape)
            rows = torch.empty(room, dtype=torch.float32, device=self.device)
            self._loaded = (start, stop, self._queries.read(start, stop, rows))
        return self._loaded[2]

    def _terms(self, values: Tensor, offset: int, rows: slice, columns: slice | Tensor) -> Tile:
        """Return products as a tile, of which padding is cut off.

        Args:
            values: inner products, float32 [H, W].
            offset: number of the first column.
            rows: the queries.
            columns: the items.
        """
        row_term, column_term = self._queries.terms[rows], self._items.terms[columns]
        used = values[: len(row_term), : len(column_term)]
        return Tile(used, offset, self._metric, row_term, column_term)


class FeatureSource(FeatureBlocks):
    """Tiles of inner products of features."""

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles gallery block by gallery block."""
        queries = self._padded(start, stop)
        for block in self._share.blocks(self._width):
            lead = block.held.start
            for top in range(0, stop - start, self._height):
                bottom = min(top + self._height, stop - start)
                rows = slice(start + top, start + bottom)
                tall = queries[top : top + self._height]
                tile = self._tile(tall, block.rows, block.begin + lead, rows, block.own, lead)
                yield slice(top, bottom), tile

    def match_keys(self, pairs: Pairs, whole_tiles: bool = False) -> Tensor:
        """Compute tiles of each run of queries with the items that match any of them.

        Queries of one identity stand together, so these tiles are few. Their shape differs from
        that of the pass, which checks every key against its own tile and, should a BLAS round the
        two differently, asks for tiles of that shape instead.
        """
        queries, count = self._padded(pairs.start, pairs.stop), pairs.count
        height = self._height if whole_tiles else min(NARROWEST, self._height)
        number = torch.from_numpy(pairs.match_item)
        where = self._share.where_held(number)
        item = number[where] - self._share.first
        row = torch.from_numpy(pairs.match_row)[where]
        # The distinct items of every run of `height` queries, and each match's place among them.
        columns = max(1, self.columns)
        places, place = torch.unique(row // height * columns + item, return_inverse=True)
        tops = torch.arange(0, round_up(count, height) + 1, height, device="cpu")
        first_place = torch.searchsorted(places, tops // height * columns).tolist()
        first_match = torch.searchsorted(row, tops.clamp_max(count)).tolist()
        keys = torch.zeros(len(number), dtype=torch.float32, device=self.device)
        buffer = torch.empty(
            (self._width, *self._items.shape), dtype=torch.float32, device=self.device
        )
        for run, top in enumerate(range(0, count, height)):
            last = first_place[run + 1]
            mine = slice(first_match[run], first_match[run + 1])
            rows = slice(pairs.start + top, pairs.start + min(top + height, count))
            for left in range(first_place[run], last, self._width):
                items = places[left : min(left + self._width, last)] % columns
                width = self._width if whole_tiles else round_up(len(items), NARROWEST)
                block = self._items.take(items, buffer[:width])
                tile = self._tile(queries[top : top + height], block, 0, rows, items)
                at = torch.arange(mine.start, mine.stop, device="cpu")
                if len(items) < last - first_place[run]:  # more items than one product takes
                    at = at[(place[mine] >= left) & (place[mine] < left + len(items))]
                found = tile.at((row[at] - top).to(self.device), (place[at] - left).to(self.device))
                keys[where[at].to(self.device)] = found
        return keys

    def _tile(
        self,
        queries: Tensor,
        items: Tensor,
        offset: int,
        rows: slice,
        columns: slice | Tensor,
        lead: int = 0,
    ) -> Tile:
        """Return the tile of padded queries [H, ...] and items [W, ...]; the rest as `_terms`.

        The first of `columns` is the item after `lead` others, which are elsewhere.
        """
        products = self._scratch(len(queries), len(items))
        torch.mm(queries, items.T, out=products)
        return self._terms(products[:, lead:], offset, rows, columns)


class RowSource(FeatureBlocks):
    """Tiles of inner products of some queries with the whole gallery, for devices with room.

    The matches' keys are read from the tile itself: no product is formed twice. On a device that
    rounds by shape a `FeatureSource` would have to count all tiles again.
    """

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles of whole rows."""
        buffer = self._scratch(self._height, self._tile_width)
        for top in range(start, stop, self._height):
            rows = slice(top, min(top + self._height, stop))
            queries = self._padded(rows.start, rows.stop)
            for left, _, block in self._items.sweep(self._width):
                torch.mm(queries, block.T, out=buffer[:, left : left + self._width])
            yield (
                slice(rows.start - start, rows.stop - start),
                self._terms(buffer, 0, rows, slice(0, self.columns)),
            )

    @property
    def _tile_width(self) -> int:
        return round_up(self.columns, self._width)


def tile_within(room: int, dimension: int) -> tuple[int, int]:
    """Return queries x items of one product on a device.

    It and the features of four blocks take at most an eighth of the room, unless that asks for
    tiles smaller than the CPU's.

    Args:
        room: bytes, see `placement.Placement`.
        dimension: width of the features.
    """
    height, width = DEVICE_TILE
    while height > TILE[0] and 4 * (height * width + 4 * width * dimension) > room // 8:
        height, width = height // 2, width // 2
    return height, width


def feature_source(
    queries: VectorSet | QueryShare,
    items: VectorSet | Share,
    memory: int | None = None,
    room: int | None = None,
) -> FeatureSource | RowSource:
    """Return the tiles of features that suit a device.

    On the CPU these are tiles of `TILE`, which stay in the cache. Elsewhere they are whole rows if
    `LEAST_ROWS` of these fit and one process holds them, else blocks: the same whether the gallery
    is there or is streamed, for a BLAS that rounds by shape.

    Args:
        queries: see `FeatureBlocks`.
        items: likewise.
        memory: likewise.
        room: bytes, see `placement.Placement`.
    """
    if room is None:
        return FeatureSource(queries, items, memory, TILE)
    share, dimension = Share.of(items), QueryShare.of(queries).vectors.dimension
    height, width = tile_within(room, dimension)
    widest = max(round_up(len(share), width), dimension)
    rows = min(HELD_BYTES, room // 16) // (4 * widest)
    if share.group.world == 1 and rows >= min(len(queries), LEAST_ROWS):
        return RowSource(queries, items, memory, (rows, width))
    return FeatureSource(queries, items, memory, (height, width))


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
