"""Ranks in the order of float64 arithmetic, from cheap tiles and a bound on their error.

A tile of approximate keys comes from a product of the features, of their coordinates in a few
directions, or of the features in 8 bits. What its error bound leaves undecided goes through finer
levels and at last to float64. The ranks are those of exact products, whatever the tiles, threads,
levels and machine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmga.common import memory as memory_sizes
from mmga.common.errors import UserError
from mmga.common.memory import Peak
from mmga.ops.certified import count_certain, settle_pairs, thresholds
from mmga.ops.distance import exact_keys, metric_number
from mmga.ops.neighbours import pair_products
from mmga.ops.ranking import Matches, Tile
from mmga.retrieval.bounds.approximation import (
    bound_between,
    tile_products,
)
from mmga.retrieval.bounds.stages import Block, Cascade
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.metrics.rank import MASK_COLUMNS, PAIR_LIMIT, PerQuery, score
from mmga.retrieval.protocols.protocol import Pairs, Selection
from mmga.retrieval.tiles.sources import Progress, tile_height

# Queries x items of one product: after one of few coordinates the features of its items should stay
# in the cache for exact products; one of whole features is the BLAS', which wants larger ones.
NARROW_TILE, TILE = (2048, 512), (3456, 1024)
# Rows and columns down to which tiles shrink where memory is short.
SMALLEST = 64
# Float32 copies of queries that one sweep over the gallery serves.
QUERY_BYTES = 64 << 20
# Rows whose products with matches are gathered at once.
_GATHERED_BYTES = 16 << 20


class CertifiedPass:
    """One pass over queries and gallery that ranks the matches by exact keys."""

    def __init__(
        self,
        query: Rows,
        query_norms: Tensor,
        gallery: Rows,
        gallery_norms: Tensor,
        selection: Selection,
        metric: str,
        cascade: Cascade,
        memory: int | None = None,
        tile: tuple[int, int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Take what is ranked.

        Args:
            query: the query features.
            query_norms: squared norms of all query rows, float64 [Q], within `beyond_bounds`.
            gallery: the gallery features.
            gallery_norms: float64 [G].
            selection: what counts for which query.
            metric: cosine or euclidean.
            cascade: the levels, whose account is kept there.
            memory: bytes that may be allocated here.
            tile: queries x items of one product; None: what suits the cascade.
            device: where the features lie and are ranked; the CPU if None.

        Raises:
            UserError: `memory` does not suffice for one tile.
        """
        self._query, self._gallery, self._selection = query, gallery, selection
        self._device = device or torch.device("cpu")
        self._query_norms = self._near(query_norms[torch.from_numpy(selection.queries)])
        self._gallery_norms = self._near(gallery_norms[torch.from_numpy(selection.gallery)])
        self._query_rows = torch.from_numpy(selection.queries)
        self._gallery_rows = torch.from_numpy(selection.gallery)
        self._metric, self._number = metric, metric_number(metric)
        self._cascade = cascade
        height, width = tile or (TILE if cascade.tiles is None else NARROW_TILE)
        height = min(tile_height(len(self._query_rows), height), len(self._query_rows))
        width = min(width, len(self._gallery_rows))
        self.columns = len(self._gallery_rows)
        row_bytes = cascade.row_bytes(query.shape[1]) + 64

        def fixed() -> int:
            """A block of the gallery, its coordinates, a tile and undecided pairs of all of it."""
            return 2 * width * row_bytes + 36 * height * width

        if memory is not None:
            while memory < fixed() + height * row_bytes and max(height, width) > SMALLEST:
                height, width = (
                    (height, -(-width // 2)) if width >= height else (-(-height // 2), width)
                )
            least = fixed() + height * row_bytes
            if memory < least:
                raise UserError(
                    f"memory: {memory_sizes.spell(memory)} cannot hold one tile of {height} x "
                    f"{width} and its features; give at least {memory_sizes.spell(least)}"
                )
        self._height, self._width = height, width
        room = QUERY_BYTES if memory is None else min(QUERY_BYTES, memory - fixed())
        self.max_rows = max(1, room // (row_bytes * self._height)) * self._height
        self._tile = torch.empty(self._height * self._width, device=self._device)
        self._buffer = torch.empty(self._width, query.shape[1], device=self._device)
        self._coordinates = torch.empty(self._width, cascade.dimensions, device=self._device)

    def rank(
        self, progress: Progress | None = None, peak: Peak | None = None, phase: str = "ranks"
    ) -> PerQuery:
        """Rank the matches of all selected queries and return what each query scores."""
        selection = self._selection
        scores = PerQuery.empty(selection.num_matches)
        done, total = 0, len(selection.queries) * self.columns
        for pairs in selection.pairs(PAIR_LIMIT, self.max_rows):
            matches, queries = self._matches(pairs), self._queries(pairs)
            slack = queries.levels[0].slack
            lower, upper = thresholds(matches.match_start, matches.match_key, slack)
            for left in range(0, self.columns, self._width):
                items = self._items(left, min(left + self._width, self.columns))
                for top in range(0, pairs.stop - pairs.start, self._height):
                    rows = slice(top, min(top + self._height, pairs.stop - pairs.start))
                    self._count(pairs, rows, queries.cut(rows), left, items, matches, lower, upper)
                    done += (rows.stop - rows.start) * len(items)
                    if progress is not None:
                        progress(phase, done, total)
                    if peak is not None:
                        peak.look()
            score(scores, selection, pairs, matches)
        return scores

    def _count(
        self,
        pairs: Pairs,
        rows: slice,
        queries: Block,
        left: int,
        items: Block,
        matches: Matches,
        lower: Tensor,
        upper: Tensor,
    ) -> None:
        """Count one tile and settle what it leaves undecided."""
        height, width = len(queries), len(items)
        values = self._tile[: height * width].view(height, width)
        tile_products(queries.levels[0], items.levels[0], values)
        whole = Tile(values, left, self._number, queries.tile_term, items.tile_term)
        bound = bound_between(queries.levels[0], items.levels[0], self._metric)
        selection, levels = self._selection, self._cascade.levels
        row_camera = column_camera = None
        if selection.query_camera is not None and selection.gallery_camera is not None:
            of_rows = slice(pairs.start + rows.start, pairs.start + rows.stop)
            row_camera = self._near(selection.query_camera[of_rows])
            column_camera = self._near(selection.gallery_camera[left : left + width])
        narrow = None if selection.labels.exclusion is None else MASK_COLUMNS
        for tile in whole.split(narrow):
            columns = slice(tile.offset - left, tile.offset - left + tile.values.shape[1])
            removed = None
            if narrow is not None:
                of_rows = slice(pairs.start + rows.start, pairs.start + rows.stop)
                of_items = slice(tile.offset, tile.offset + tile.values.shape[1])
                removed = self._near(selection.excludes(of_rows, of_items))
            part = items.cut(columns)
            undecided = count_certain(
                tile,
                rows,
                matches,
                lower,
                upper,
                bound.tile(slice(None), columns),
                row_camera,
                None if column_camera is None else column_camera[columns],
                removed,
            )
            levels[0].note(tile.values.numel(), len(undecided))
            for level, one, other in zip(
                levels[1:], queries.levels[1:], part.levels[1:], strict=True
            ):
                exact = level is levels[-1]
                still = settle_pairs(
                    undecided,
                    one.rows,
                    other.rows,
                    queries.exact_term,
                    part.exact_term,
                    self._number,
                    tile.offset,
                    rows,
                    matches,
                    None if exact else bound_between(one, other, self._metric),
                )
                level.note(len(undecided), len(still))
                undecided = still

    def _queries(self, pairs: Pairs) -> Block:
        features = self._query.take(self._query_rows[pairs.start : pairs.stop])
        norms = self._query_norms[pairs.start : pairs.stop]
        coordinates = torch.empty(len(features), self._cascade.dimensions, device=self._device)
        return self._cascade.block(features, norms, self._metric, coordinates)

    def _items(self, left: int, right: int) -> Block:
        rows = self._gallery_rows[left:right]
        first, last = int(rows[0]), int(rows[-1]) + 1
        buffer = self._buffer[: right - left]
        if last - first != right - left:
            features = self._gallery.take(rows, buffer)
        elif self._gallery.dtype == torch.float32:
            features = self._gallery.block(first, last)
        else:
            features = self._gallery.block(first, last, buffer)
        norms = self._gallery_norms[left:right]
        coordinates = self._coordinates[: right - left]
        return self._cascade.block(features.contiguous(), norms, self._metric, coordinates)

    def _matches(self, pairs: Pairs) -> Matches:
        """Return the matches of some queries with their exact keys."""
        item = torch.from_numpy(pairs.match_item)
        row = pairs.start + torch.repeat_interleave(
            torch.arange(pairs.stop - pairs.start), torch.from_numpy(np.diff(pairs.match_start))
        )
        keys = pair_keys(
            self._query,
            self._near(self._query_rows[row]),
            self._query_norms[self._near(row)],
            self._gallery,
            self._near(self._gallery_rows[item]),
            self._gallery_norms[self._near(item)],
            self._metric,
        )
        return Matches.of(
            self._near(pairs.match_start),
            self._near(item),
            keys,
            self._near(pairs.ignored_start),
            self._near(pairs.ignored_item),
        )

    def _near(self, values: Tensor | np.ndarray) -> Tensor:
        return torch.as_tensor(values).to(self._device)


def pair_keys(
    query: Rows,
    query_rows: Tensor,
    query_norms: Tensor,
    gallery: Rows,
    gallery_rows: Tensor,
    gallery_norms: Tensor,
    metric: str,
) -> Tensor:
    """Return the keys of pairs in float64, the same on every machine.

    Args:
        query: the query features.
        query_rows: int64 [P].
        query_norms: squared norms of these rows, float64 [P].
        gallery: the gallery features.
        gallery_rows: int64 [P].
        gallery_norms: float64 [P].
        metric: cosine or euclidean.

    Returns:
        float64 [P]: 1 - <q, g> / (|q| |g|), 1 for a zero vector; or the squared distance >= 0.
    """
    products = torch.empty(len(query_rows), dtype=torch.float64, device=query_rows.device)
    in_place = all(
        len(side.shards) == 1 and side.dtype == torch.float32 and side.shards[0].is_contiguous()
        for side in (query, gallery)
    )
    step = len(products) if in_place else max(1, _GATHERED_BYTES // (8 * query.shape[1]))
    for start in range(0, len(products), max(step, 1)):
        part = slice(start, start + step)
        if in_place:
            products[part] = pair_products(
                query.shards[0], gallery.shards[0], query_rows[part], gallery_rows[part]
            )
        else:
            x, y = query.take(query_rows[part]), gallery.take(gallery_rows[part])
            places = torch.arange(len(x), device=x.device)
            products[part] = pair_products(x, y, places, places)
    return exact_keys(products, query_norms, gallery_norms, metric)
