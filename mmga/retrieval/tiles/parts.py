"""Part features: tiles of visibility-weighted distances, streamed like those of whole features.

d(q, g) = sum over parts of v_q v_g d_part / sum of v_q v_g, where d_part is the metric's distance
as users see it (1 - cosine, or the Euclidean distance itself). Pairs without a common visible part
are infinitely far apart.

Legend: ``P`` parts, ``H W`` rows and columns of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.ops.distance import part_keys
from mmga.ops.ranking import Tile
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.tiles.share import QueryShare, Share
from mmga.retrieval.tiles.sources import NARROWEST, FeatureSource, round_up, rows_within

# P products of this shape together take as much as one of whole features.
TILE = (256, 1024)
# A part that is seen less than this is not seen: no product of two weights underflows then.
INVISIBLE = 2.0**-60


class PartSource(FeatureSource):
    """Tiles of distances of part features, each from P products of one fixed shape."""

    def __init__(
        self,
        queries: VectorSet | QueryShare,
        items: VectorSet | Share,
        visibility: tuple[Tensor, Tensor],
        memory: int | None = None,
        tile: tuple[int, int] | None = None,
    ) -> None:
        """Take both sides.

        Args:
            queries: the queries that are ranked, vectors of [P, D].
            items: the gallery items that take part, or those of them that this process holds.
            visibility: of the parts of both, float32 [Q', P] and [G', P], in the order of their
                vectors.
            memory: bytes that may be allocated here.
            tile: queries x items of one product; `TILE` if None.

        Raises:
            UserError: `memory` does not suffice for one tile.
        """
        super().__init__(queries, items, memory, tile or TILE)
        self._row_term, self._column_term = (
            side.terms.T.contiguous() for side in (self._queries, self._items)
        )  # [P, N]
        self._row_weight, self._column_weight = (
            visible(side).T.contiguous() for side in visibility
        )
        self._flat_keys = torch.empty(self._height * self._width, dtype=torch.float32, device="cpu")

    def _tile_height(self, most: int) -> int:
        return min(round_up(most, NARROWEST), round_up(self._asked, NARROWEST))

    def _queries_within(self, memory: int | None) -> int:
        parts, dimension = self._items.shape
        # Products and distances of a tile, and a block of items for it and for the matches.
        pair = self._height * self._width
        fixed = 4 * ((parts + 1) * pair + 2 * self._width * parts * dimension)
        what = f"{self._height} x {self._width} and its {parts} parts"
        tile_bytes = 4 * self._height * parts * dimension
        return rows_within(memory, fixed, self._height, tile_bytes, what)

    @property
    def _tile_width(self) -> int:
        return self._width * self._items.shape[0]

    def _tile(
        self,
        queries: Tensor,
        items: Tensor,
        offset: int,
        rows: slice,
        columns: slice | Tensor,
        lead: int = 0,
    ) -> Tile:
        height, width, parts = len(queries), len(items), self._items.shape[0]
        products = self._scratch(height, width * parts).view(parts, height, width)
        for part, product in enumerate(products):
            torch.mm(queries[:, part], items[:, part].T, out=product)
        row_term, column_term = self._row_term[:, rows], self._column_term[:, columns]
        shape = row_term.shape[1], column_term.shape[1]
        keys = self._flat_keys[: height * width].view(height, width)[: shape[0], : shape[1]]
        part_keys(
            products[:, : shape[0], lead : lead + shape[1]],
            row_term,
            column_term,
            self._row_weight[:, rows],
            self._column_weight[:, columns],
            self._metric,
            keys,
        )
        return Tile.of_keys(keys, offset)


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
