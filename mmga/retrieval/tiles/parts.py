"""Part features: tiles of visibility-weighted distances, streamed like those of whole features.

d(q, g) = sum over parts of v_q v_g d_part / sum of v_q v_g, where d_part is the metric's distance
as users see it (1 - cosine, or the Euclidean distance itself). Pairs without a common visible part
are infinitely far apart.

Legend: ``P`` parts, ``H W`` rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmga.common import memory as memory_sizes
from mmga.common.errors import UserError
from mmga.ops import distance
from mmga.ops.parts import part_keys
from mmga.ops.ranking import Tile
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.protocols.protocol import Pairs
from mmga.retrieval.tiles.sources import NARROWEST, QUERY_BYTES, round_up

# P products of this shape together take as much as one of whole features.
TILE = (256, 1024)
# A part that is seen less than this is not seen: no product of two weights underflows then.
INVISIBLE = 2.0**-60


class PartSide:
    """One side of a `PartSource`: chosen rows, with what they contribute to distances.

    Attributes:
        rows: part features [N, P, D].
        chosen: rows that take part, int64 [N'].
        term: float32 [P, N'], see `distance.key_terms`.
        weight: float32 [P, N'], visibility.
    """

    def __init__(
        self, rows: Rows, visibility: Tensor, norms: Tensor, chosen: np.ndarray, metric: str
    ) -> None:
        """Take some rows.

        Args:
            rows: part features [N, P, D].
            visibility: float32 [N, P].
            norms: squared norms, float64 [N, P].
            chosen: rows that take part, int64 [N'].
            metric: cosine or euclidean.
        """
        self.rows, self.chosen = rows, torch.from_numpy(chosen)
        self.term = distance.key_terms(norms[chosen], metric).T.contiguous()
        self.weight = visible(visibility[chosen]).T.contiguous()


class PartSource:
    """Tiles of distances of part features, each from P products of one fixed shape.

    Gallery blocks are the outer loop: each is read, and widened to float32, once for as many
    queries as fit `QUERY_BYTES`.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(
        self,
        query: PartSide,
        gallery: PartSide,
        metric: str,
        memory: int | None = None,
        tile: tuple[int, int] | None = None,
    ) -> None:
        """Take both sides.

        Args:
            query: the queries that are ranked.
            gallery: the items that take part, ascending.
            metric: cosine or euclidean.
            memory: bytes that may be allocated here.
            tile: queries x items of one product; `TILE` if None.

        Raises:
            UserError: `memory` does not suffice for one tile.
        """
        tile = tile or TILE
        self._query, self._gallery = query, gallery
        self._metric = distance.metric_number(metric)
        self.columns = len(gallery.chosen)
        self._height = min(round_up(tile[0], NARROWEST), round_up(len(query.chosen), NARROWEST))
        self._width = min(round_up(tile[1], NARROWEST), round_up(self.columns, NARROWEST))
        parts, dimension = gallery.rows.shape[1:]
        pair = self._height * self._width
        # Products and distances of a tile and of the matches', and a block of items for each.
        fixed = 4 * (2 * (parts + 1) * pair + 2 * self._width * parts * dimension)
        queries = 4 * self._height * parts * dimension
        if memory is not None and memory < fixed + queries:
            raise UserError(
                f"memory: {memory_sizes.spell(memory)} cannot hold one tile of {self._height} x "
                f"{self._width} and its {parts} parts; give at least "
                f"{memory_sizes.spell(fixed + queries)}"
            )
        room = QUERY_BYTES if memory is None else min(QUERY_BYTES, memory - fixed)
        self.max_rows = max(1, room // queries) * self._height
        self._products = torch.empty(parts, self._height, self._width)
        self._keys = torch.empty(self._height, self._width)
        self._block: Tensor | None = None
        self._loaded: tuple[int, int, Tensor] | None = None

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles gallery block by gallery block."""
        queries = self._queries(start, stop)
        for left in range(0, self.columns, self._width):
            right = min(left + self._width, self.columns)
            items = self._items(left, right)
            columns = slice(left, right)
            for top in range(0, stop - start, self._height):
                bottom = min(top + self._height, stop - start)
                keys = self._distances(
                    queries[top : top + self._height],
                    items,
                    self._products,
                    self._keys,
                    slice(start + top, start + bottom),
                    self._gallery.term[:, columns],
                    self._gallery.weight[:, columns],
                )
                yield slice(top, bottom), Tile.of_keys(keys, left)

    def match_keys(self, pairs: Pairs, whole_tiles: bool = False) -> Tensor:
        """Compute distances of each run of queries to the items that match any of them.

        Products of another shape than the tiles' may differ in the last bit; the pass checks that.
        """
        rows = self._height if whole_tiles else NARROWEST
        queries = self._queries(pairs.start, pairs.stop)
        keys = torch.empty(len(pairs.match_item))
        item = torch.from_numpy(pairs.match_item)
        for top in range(0, pairs.stop - pairs.start, rows):
            bottom = min(top + rows, pairs.stop - pairs.start)
            first, last = int(pairs.match_start[top]), int(pairs.match_start[bottom])
            if first == last:
                continue
            items, column = torch.unique(item[first:last], return_inverse=True)
            sizes = torch.from_numpy(np.diff(pairs.match_start[top : bottom + 1]))
            row = torch.repeat_interleave(torch.arange(bottom - top), sizes)
            for left in range(0, len(items), self._width):
                here = items[left : left + self._width]
                width = self._width if whole_tiles else round_up(len(here), NARROWEST)
                found = self._distances(
                    queries[top : top + rows],
                    self._gallery.rows.take(self._gallery.chosen[here], self._buffer()[:width]),
                    torch.empty(len(self._products), rows, width),
                    torch.empty(rows, width),
                    slice(pairs.start + top, pairs.start + bottom),
                    self._gallery.term[:, here],
                    self._gallery.weight[:, here],
                )
                inside = torch.nonzero((column >= left) & (column < left + len(here))).squeeze(1)
                keys[first + inside] = found[row[inside], column[inside] - left]
        return keys

    def _distances(
        self,
        queries: Tensor,
        items: Tensor,
        products: Tensor,
        keys: Tensor,
        rows: slice,
        column_term: Tensor,
        column_weight: Tensor,
    ) -> Tensor:
        """Return the distances of padded queries [H, P, D] and items [W, P, D], without padding."""
        for part, product in enumerate(products):
            torch.mm(queries[:, part], items[:, part].T, out=product)
        height, width = rows.stop - rows.start, column_term.shape[1]
        used = keys[:height, :width]
        part_keys(
            products[:, :height, :width],
            self._query.term[:, rows],
            column_term,
            self._query.weight[:, rows],
            column_weight,
            self._metric,
            used,
        )
        return used

    def _queries(self, start: int, stop: int) -> Tensor:
        """Return queries as float32 [H', P, D], with zero rows up to whole tiles."""
        if self._loaded is None or self._loaded[:2] != (start, stop):
            self._loaded = None
            height = round_up(stop - start, self._height)
            rows = torch.empty(height, *self._query.rows.shape[1:])
            self._query.rows.take(self._query.chosen[start:stop], rows)
            self._loaded = (start, stop, rows)
        return self._loaded[2]

    def _items(self, left: int, right: int) -> Tensor:
        """Return gallery items as float32 [W, P, D], with zero rows at the end."""
        rows = self._gallery.chosen[left:right]
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first != right - left:
            return self._gallery.rows.take(rows, self._buffer())
        if right - left == self._width and self._gallery.rows.dtype == torch.float32:
            return self._gallery.rows.block(first, last)
        return self._gallery.rows.block(first, last, self._buffer())

    def _buffer(self) -> Tensor:
        if self._block is None:
            self._block = torch.empty(self._width, *self._gallery.rows.shape[1:])
        return self._block


def visible(visibility: Tensor) -> Tensor:
    """Return the weights, zero where a part is as good as invisible."""
    return torch.where(visibility < INVISIBLE, 0.0, visibility)


def pairs_without_common_part(query: Tensor, gallery: Tensor) -> int:
    """Count the pairs that see no part in common.

    Args:
        query: visibility [Q, P].
        gallery: visibility [G, P].
    """
    sides = [
        torch.unique((visible(side) > 0).to(torch.float32), dim=0, return_counts=True)
        for side in (query, gallery)
    ]
    (patterns, counts), (others, other_counts) = sides
    total = 0
    for start in range(0, len(patterns), 256):
        apart = patterns[start : start + 256] @ others.T == 0  # [patterns, others]
        total += int((apart * other_counts).sum(1) @ counts[start : start + 256])
    return total
