"""Re-ranked distances of queries to a gallery from features, some rows at a time.

Memory beside the features: the neighbour lists and sparse rows, some hundred entries an item, and
the distances of queries to gallery where these fit a limit; else their tiles are computed again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.neighbours import squared_distances_
from mmga.ops.ranking import Tile
from mmga.retrieval.features import JUNK
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.neighbours.certified_knn import certified_neighbours, exact_order
from mmga.retrieval.neighbours.cost_model import cheapest_tiles
from mmga.retrieval.neighbours.knn import check_metric, neighbours_within
from mmga.retrieval.neighbours.vectors import Items, tile_on
from mmga.retrieval.reranking.encode import encode, mix
from mmga.retrieval.reranking.settings import KReciprocal

if TYPE_CHECKING:
    from mmga.retrieval.tiles.problem import Context

KEPT_BYTES = 512 << 20
"""Distances of queries to gallery are kept from the neighbour pass where they take no more."""
# Float64 distances that are handed out together: they stay in the cache between the passes over
# them, and a C library hands the same memory out again (larger pieces are mapped anew each time).
_BLOCK_BYTES = 4 << 20
_GROUP_BYTES = 256 << 20  # float32 distances that are computed together
_LEAST_GROUP = 64  # narrower products take other code paths in a BLAS, whose last bits differ


class Reranking:
    """The neighbour graph of queries and gallery, and the re-ranked distances it gives.

    Attributes:
        queries: Q.
        gallery: G.
        device: where the distances are.
        seconds: what the neighbour pass and the sparse stages took.
        exact: whose order the neighbours have: certified or float32.
    """

    def __init__(
        self,
        query: Rows,
        gallery: Rows | None,
        rule: KReciprocal,
        metric: str = "cosine",
        *,
        query_rows: Tensor | None = None,
        gallery_rows: Tensor | None = None,
        memory: int | None = None,
        progress: Progress | None = None,
        exact: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Find all neighbours and encode them.

        Args:
            query: feature rows of the queries.
            gallery: of the gallery; None: one set against itself, of which N is that one set.
            rule: settings.
            metric: "cosine" or "euclidean".
            query_rows: rows of the queries that take part, ascending int64; None for all.
            gallery_rows: likewise. Queries and items are numbered within these from here on.
            memory: bytes that kept distances may take; None for `KEPT_BYTES`.
            progress: called as (phase, done, total).
            exact: whose order neighbours that nearly tie have: ``"certified"``, ``"float32"``, or
                None for certified where it can be.
            device: where to compute; where the features lie if None.

        Raises:
            UserError: widths differ, a value is NaN or infinite, a side is empty, or the order
                cannot be certified and shall be.
        """
        check_metric(metric)
        self._rule = rule
        sides = [query] if gallery is None else [query, gallery]
        chosen = [query_rows, gallery_rows][: len(sides)]
        if any(
            not (len(side) if at is None else len(at))
            for side, at in zip(sides, chosen, strict=True)
        ):
            raise UserError("re-ranking needs at least one query and one gallery item, found none")
        self._items = Items(sides, metric, chosen, device)
        self.device = self._items.device
        self._tile = tile_on(self.device, len(self._items), self._items.dimension)
        self.queries = len(query) if query_rows is None else len(query_rows)
        # Of one set against itself, item g of the gallery is item g of the graph.
        self._first = 0 if gallery is None else self.queries
        self.gallery = len(self._items) - self._first
        start = time.perf_counter()
        k = rule.neighbours_needed(len(self._items))
        certified = exact_order(self._items, exact) == "certified"
        limit = KEPT_BYTES if memory is None else min(KEPT_BYTES, memory)
        kept = 0 if gallery is None else self.queries * self.gallery
        kept = kept if 4 * kept <= limit else 0
        tiles = None
        if certified:
            tiles = cheapest_tiles(self._items, k, kept, farthest=rule.divides)
        self._kept: Tensor | None = None
        if tiles is None and kept:
            self._kept = torch.empty((self.queries, self.gallery), device=self._items.device)
        self.exact = "certified" if certified else "float32"
        neighbours = (
            certified_neighbours(
                self._items, k, progress, tiles, kept=self._kept, farthest=rule.divides
            )
            if certified
            else neighbours_within(self._items, k, progress, self._kept)
        )
        self._maxima = neighbours.maxima[: self.queries].double()
        found = time.perf_counter()
        self._rows = encode(neighbours, rule, self._items.pair_distances)
        self._inverted = ops.transpose_rows(self._rows, self._first)
        encoded = time.perf_counter()
        self.seconds = {"neighbours": found - start, "encoding": encoded - found}

    @property
    def group(self) -> int:
        """Queries whose distances are best asked for together: one product serves them."""
        return max(_LEAST_GROUP, min(self._tile, _GROUP_BYTES // (4 * self.gallery)))

    def blocks(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the final distances of some queries, few rows at a time.

        Args:
            queries: int64 [R].

        Yields:
            Which of `queries` they are, and float64 [r, G].
        """
        queries = queries.to(self.device)
        for begin in range(0, len(queries), self.group):
            part = queries[begin : begin + self.group]
            for rows, block in self._group_blocks(part):
                yield slice(begin + rows.start, begin + rows.stop), block

    def _group_blocks(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        overlaps = ops.jaccard_rows(self._rows, self._inverted, queries)
        original = self._original(queries) if self._kept is None else None
        room = _BLOCK_BYTES if self.device.type == "cpu" else _GROUP_BYTES  # few launches
        rows = max(1, room // (8 * self.gallery))
        for low in range(0, len(queries), rows):
            high = min(low + rows, len(queries))
            part = queries[low:high]
            if original is None:
                assert self._kept is not None
                squared = self._kept.index_select(0, part)
            else:
                squared = original[low:high]
            yield slice(low, high), self._mixed(squared, part, _between(overlaps, low, high))

    def _mixed(self, squared: Tensor, queries: Tensor, overlaps: ops.Rows) -> Tensor:
        scale = 0.5 if self._items.metric == "cosine" else 1.0
        maxima = self._maxima[queries]
        return mix(squared, maxima, overlaps, self._first, self._rule, scale)

    def _original(self, queries: Tensor) -> Tensor:
        """Compute the squared distances of one group's queries to the gallery: [R, G] float32."""
        height, width = self.group, self._tile
        result = torch.empty((len(queries), self.gallery), device=self._items.device)
        tile = result.new_empty(height, width)
        own = result.new_zeros(height, self._items.dimension)
        own[: len(queries)] = self._items.take(queries)
        count = self._first + self.gallery
        runs = [(begin, min(begin + width, count)) for begin in range(self._first, count, width)]
        for (first, last), others in zip(runs, self._items.blocks(runs, width), strict=True):
            torch.mm(own, others.t(), out=tile)
            used = tile[: len(queries), : last - first]
            squared_distances_(
                used,
                self._items.terms[queries],
                self._items.terms[first:last],
                cosine=self._items.metric == "cosine",
            )
            result[:, first - self._first : last - self._first] = used
        if self._first == 0:  # one set against itself
            result[torch.arange(len(queries)), queries] = 0
        return result


class RerankedSource:
    """Re-ranked distances as tiles of whole rows, for the pass that counts ranks."""

    dtype = torch.float64

    def __init__(self, reranking: Reranking, queries: np.ndarray, items: np.ndarray) -> None:
        """Take the queries and items of a selection.

        Args:
            reranking: of all that takes part in the graph.
            queries: places in its queries, int64 [Q'].
            items: places in its gallery, ascending int64 [G'].
        """
        self._reranking = reranking
        self._queries = torch.from_numpy(queries)
        self.device = reranking.device
        whole = len(items) == reranking.gallery
        self._items = None if whole else torch.from_numpy(items).to(self.device)
        self.columns = len(items)
        self.max_rows = reranking.group

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles of whole rows."""
        for rows, final in self._reranking.blocks(self._queries[start:stop]):
            yield rows, Tile.of_keys(final if self._items is None else final[:, self._items])


def reranked_source(rule: KReciprocal, context: Context) -> RerankedSource:
    """Re-rank what an evaluation ranks.

    Junk takes no part in the neighbour graph, unless the protocol says so; images of the query's
    own camera do, and the ranking alone leaves them out.

    Raises:
        UserError: the features are of parts, which have no neighbour graph here.
    """
    query, gallery = context.query.rows, context.gallery.rows
    if len(query.shape) != 2:
        raise UserError("re-ranking needs features [N, D]; part features cannot be re-ranked")
    labels, selection = context.labels, context.selection
    query_rows = np.flatnonzero(labels.query_pids != JUNK)
    gallery_rows = np.flatnonzero(labels.gallery_pids != JUNK)
    if selection.protocol.junk_in_graph:
        gallery_rows = np.arange(len(labels.gallery_pids))

    def watched(phase: str, done: int, total: int) -> None:
        context.peak.look()
        if context.progress is not None:
            context.progress(phase, done, total)

    reranking = Reranking(
        query,
        None if gallery is query else gallery,
        rule,
        context.metric,
        query_rows=_unless_all(query_rows, len(query)),
        gallery_rows=_unless_all(gallery_rows, len(gallery)),
        memory=None if context.memory is None else context.memory // 2,
        progress=watched,
        exact=context.exact,
        device=context.device,
    )
    context.peak.look()
    taken = sum(reranking.seconds.values())
    context.seconds["neighbours"] = context.seconds.get("neighbours", 0.0) + taken
    return RerankedSource(
        reranking,
        np.searchsorted(query_rows, selection.queries),
        np.searchsorted(gallery_rows, selection.gallery),
    )


def _unless_all(rows: np.ndarray, count: int) -> Tensor | None:
    return None if len(rows) == count else torch.from_numpy(rows)


def _between(rows: ops.Rows, low: int, high: int) -> ops.Rows:
    first, last = int(rows.offsets[low]), int(rows.offsets[high])
    return ops.Rows(
        rows.offsets[low : high + 1] - first, rows.columns[first:last], rows.values[first:last]
    )
