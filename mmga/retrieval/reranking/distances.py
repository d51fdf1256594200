"""Re-ranked distances of queries to a gallery from features, some rows at a time.

Memory beside the features: the neighbour lists and sparse rows, some hundred entries an item, and
the float32 distances of queries to gallery where these fit a limit; else, as where neighbours are
certified, their tiles are computed again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.neighbours import squared_distances_
from mmga.ops.ranking import Tile
from mmga.retrieval.features import JUNK
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.shares import share_of
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.certified_knn import exact_order
from mmga.retrieval.neighbours.knn import search
from mmga.retrieval.neighbours.shared_knn import check_on_cpu, in_place
from mmga.retrieval.neighbours.shared_set import SharedSet
from mmga.retrieval.neighbours.tile_sizes import tile_on
from mmga.retrieval.protocols.selection import Pairs
from mmga.retrieval.reranking.encode import encode, mix
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.reranking.shared_encoding import encode_shared
from mmga.retrieval.tiles.problem import RankingProblem

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
        first: number of the gallery's first item in the graph.
        device: where the distances are.
        rule: the settings.
        vectors: the queries, and after them the gallery.
        maxima: float64 [Q], largest squared distance of each query to any vector.
        seconds: what the neighbour pass and the sparse stages took.
        exact: whose order the neighbours have: certified or float32.
        held: places of the gallery items that this process holds.
        processes: those that hold the gallery.
    """

    processes = Group()

    def __init__(
        self,
        vectors: VectorSet,
        queries: int | None,
        rule: KReciprocal,
        *,
        exact: str | None = None,
        keep: bool = True,
        memory: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Find all neighbours and encode them.

        Args:
            vectors: the queries that take part, and after them the gallery.
            queries: Q; None: one set against itself, of which N is that one set.
            rule: settings.
            exact: whose order neighbours that nearly tie have, see `neighbours.knn.search`.
            keep: float32 distances of queries to gallery are kept where they fit `memory`.
            memory: bytes that kept distances may take (`KEPT_BYTES` if None), or a search beyond
                `search_bytes`.
            progress: called as (phase, done, total).

        Raises:
            UserError: the order cannot be certified and shall be.
        """
        self.rule, self.vectors, self.device = rule, vectors, vectors.device
        # Of one set against itself, item g of the gallery is item g of the graph.
        self.first = queries or 0
        self.queries = len(vectors) if queries is None else queries
        self.gallery = len(vectors) - self.first
        self.held, self._own = slice(0, self.gallery), self.first
        self._tile = tile_on(self.device, len(vectors), vectors.dimension)
        limit = KEPT_BYTES if memory is None else min(KEPT_BYTES, memory)
        # Largest distances beside kept ones are those of tiles, others are exact: certified ones
        # depend neither on memory nor on the number of processes.
        keep = keep and queries is not None and exact_order(vectors, exact) == "float32"
        keep = keep and 4 * self.queries * self.gallery <= limit
        start = time.perf_counter()
        found = search(
            vectors,
            rule.neighbours_needed(len(vectors)),
            exact=exact,
            distances_of=self.queries if keep else 0,
            farthest=rule.divides,
            spare=memory,
            progress=progress,
        )
        self._kept, self.exact = found.distances, found.exact
        self.maxima = found.neighbours.maxima[: self.queries].double()
        searched = time.perf_counter()
        self._rows = encode(found.neighbours, rule, vectors.pair_distances)
        self._inverted = ops.transpose_rows(self._rows, self.first)
        encoded = time.perf_counter()
        self.seconds = {"neighbours": searched - start, "encoding": encoded - searched}

    @property
    def group(self) -> int:
        """Queries whose distances are best asked for together: one product serves them."""
        return max(_LEAST_GROUP, min(self._tile, _GROUP_BYTES // (4 * self.gallery)))

    def blocks(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the final distances of some queries to items held here, few rows at a time.

        Args:
            queries: int64 [R].

        Yields:
            Which of `queries` they are, and float64 [r, G'].
        """
        queries = queries.to(self.device)
        for begin in range(0, len(queries), self.group):
            part = queries[begin : begin + self.group]
            for rows, block in self._group_blocks(part):
                yield slice(begin + rows.start, begin + rows.stop), block

    def overlaps(self, queries: Tensor) -> ops.CsrRows:
        """Return the Jaccard distances below 1 of some queries, [R, N]; columns from `first` on."""
        return ops.jaccard_rows(self._rows, self._inverted, queries)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Return places in `vectors` of gallery items that this process holds, int64 [K]."""
        return self._own - self.held.start + items

    def _group_blocks(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        overlaps, original = self._parts(queries)
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
            yield slice(low, high), self._mixed(squared, part, overlaps.cut(low, high))

    def _parts(self, queries: Tensor) -> tuple[ops.CsrRows, Tensor | None]:
        """Return overlaps and, unless they are kept, squared distances of one group's queries."""
        return self.overlaps(queries), self._original(queries) if self._kept is None else None

    def _mixed(self, squared: Tensor, queries: Tensor, overlaps: ops.CsrRows) -> Tensor:
        scale = 0.5 if self.vectors.metric == "cosine" else 1.0
        maxima = self.maxima[queries]
        return mix(squared, maxima, overlaps, self.first + self.held.start, self.rule, scale)

    def _original(self, queries: Tensor) -> Tensor:
        """Compute one group's squared distances to the items held here: [R, G'] float32."""
        height, vectors, held = self.group, self.vectors, self.held
        shape = len(queries), held.stop - held.start
        result = torch.empty(shape, dtype=torch.float32, device=self.device)
        tile = result.new_empty(height, self._tile)
        own = vectors.take(queries, result.new_empty(height, vectors.dimension))
        terms = vectors.terms[self._own : self._own + shape[1]]
        for items, columns, others in self._blocks_of_items():
            torch.mm(own, others.t(), out=tile)
            used = tile[: len(queries), columns]
            both = vectors.terms[queries], terms[items]
            squared_distances_(used, *both, cosine=vectors.metric == "cosine")
            result[:, items] = used
        if self.first == 0:  # one set against itself
            at = ((queries >= held.start) & (queries < held.stop)).nonzero()[:, 0]
            result[at, queries[at] - held.start] = 0
        return result

    def _blocks_of_items(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the items held here: places among them, and in a block of items, and the block."""
        for first, last, others in self.vectors.sweep(self._tile, self.first):
            yield slice(first - self.first, last - self.first), slice(0, last - first), others


class SharedReranking(Reranking):
    """A graph whose gallery several processes hold, with certified neighbours.

    Each process has all queries and its own gallery items: their features and their encodings.
    """

    _kept = None
    _last: tuple[Tensor, tuple[ops.CsrRows, Tensor | None]] | None = None

    def __init__(
        self,
        queries: VectorSet,
        own: VectorSet | None,
        items: SharedSet,
        rule: KReciprocal,
        *,
        spare: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Find the neighbours of all vectors together, and encode those of this process.

        Args:
            queries: all of them; of one set against itself all vectors.
            own: the gallery items that this process holds.
            items: `graph_of(queries, own, ...)`.
            rule: settings.
            spare: see `SharedSet.nearest`.
            progress: called as (phase, done, total).
        """
        self.rule, self.processes, self.exact = rule, items.group, "certified"
        first, last = items.ranges[-1]
        self.queries, one_set = len(queries), len(items.ranges) == 1
        self.first = 0 if one_set else self.queries
        self.gallery = len(items) - self.first
        self.held = slice(first - self.first, last - self.first)
        self._own = first if one_set else self.first
        both = [queries] if one_set or own is None else [queries, own]
        self.vectors = VectorSet.joined(both)
        self.device = self.vectors.device
        self._tile = tile_on(self.device, len(items), self.vectors.dimension)
        start = time.perf_counter()
        k = rule.neighbours_needed(len(items))
        found = items.nearest(k, farthest=rule.divides, spare=spare, progress=progress)
        searched = time.perf_counter()
        graph = [torch.arange(self.queries, device="cpu")]
        if not one_set:
            graph.append(torch.arange(first, last, device="cpu"))
        self._rows, maxima = encode_shared(items, found, rule, torch.cat(graph))
        self.maxima = maxima[: self.queries].double()
        with self.processes.together():
            inverted = self._rows if not one_set else ops.keep_rows(self._rows, items.numbers)
            self._inverted = ops.transpose_rows(inverted, self.first)
        encoded = time.perf_counter()
        self.seconds = {"neighbours": searched - start, "encoding": encoded - searched}

    def _parts(self, queries: Tensor) -> tuple[ops.CsrRows, Tensor | None]:
        # Of a group, matches are read before all items are counted.
        if self._last is None or not torch.equal(self._last[0], queries):
            self._last = None
            self._last = queries, super()._parts(queries)
        return self._last[1]

    def _blocks_of_items(self) -> Iterator[tuple[slice, slice, Tensor]]:
        # One grid over the items of all, so that products have the shapes of one process.
        width, (first, last) = self._tile, (self.held.start, self.held.stop)
        for begin in range(first // width * width, last, width):
            left, right = max(begin, first), min(begin + width, last)
            block = torch.zeros(width, self.vectors.dimension, dtype=torch.float32, device="cpu")
            columns, items = slice(left - begin, right - begin), slice(left - first, right - first)
            self.vectors.read(self._own + items.start, self._own + items.stop, block[columns])
            yield items, columns, block


class RerankedSource:
    """Re-ranked distances as tiles of whole rows, for the pass that counts ranks.

    Attributes:
        reranking: the graph.
        queries: int64 [Q'], of the graph's queries those that are ranked.
        columns: items that are ranked.
        held: those of them that this process holds.
    """

    dtype = torch.float64

    def __init__(self, reranking: Reranking, queries: np.ndarray, items: np.ndarray) -> None:
        """Take the queries and items of a selection.

        Args:
            reranking: of all that takes part in the graph.
            queries: places in its queries, int64 [Q'].
            items: places in its gallery, ascending int64 [G'].
        """
        self.reranking = reranking
        self.queries = torch.from_numpy(queries)
        self.device = reranking.device
        whole = len(items) == reranking.gallery
        self._items = None if whole else torch.from_numpy(items).to(self.device)
        self.columns = len(items)
        self.max_rows = reranking.group
        ends = reranking.held.start, reranking.held.stop
        self.held = slice(*np.searchsorted(items, ends).tolist())

    def vectors_of(self, items: Tensor) -> Tensor:
        """Return places among the graph's vectors of items that are held here, int64 [K]."""
        return self.reranking.vectors_of(items if self._items is None else self._items[items])

    def overlaps(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, items held here and Jaccard distances below 1 of queries, ascending, [E]."""
        rows = self.reranking.overlaps(queries)
        row = torch.arange(len(queries), device=self.device)
        row = row.repeat_interleave(rows.offsets.diff())
        item = rows.columns.long() - self.reranking.first
        if self._items is None:
            return row, item, rows.values
        place = torch.searchsorted(self._items, item).clamp_max(self.columns - 1)
        known = self._items[place] == item
        return row[known], place[known], rows.values[known]

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles of whole rows."""
        for rows, final in self.reranking.blocks(self.queries[start:stop]):
            yield rows, Tile.of_keys(final if self._items is None else final[:, self._items])


class SharedRerankedSource(RerankedSource):
    """Re-ranked distances to the items that this process holds, and keys of the matches ahead.

    Attributes:
        columns: items held here that are ranked.
    """

    def __init__(self, source: RerankedSource) -> None:
        """Take a source whose graph several processes share."""
        for name in ("reranking", "queries", "device", "max_rows", "held"):
            setattr(self, name, getattr(source, name))
        first = self.reranking.held.start
        self._items = None if source._items is None else source._items[self.held] - first
        self.columns = self.held.stop - self.held.start

    def match_keys(self, pairs: Pairs, whole_tiles: bool = False) -> Tensor:
        """Return the distances of matches that are held here, and 0 of others, float64 [M]."""
        row, item = (torch.from_numpy(part) for part in (pairs.match_row, pairs.match_item))
        keys = torch.zeros(len(item), dtype=torch.float64, device="cpu")
        for rows, tile in self.tiles(pairs.start, pairs.stop):
            here = (row >= rows.start) & (row < rows.stop)
            here &= (item >= self.held.start) & (item < self.held.stop)
            at = here.nonzero()[:, 0]
            keys[at] = tile.at(row[at] - rows.start, item[at])
        return keys

    def tiles(self, start: int, stop: int) -> Iterator[tuple[slice, Tile]]:
        """Yield tiles of all items that are held here."""
        if not self.columns:
            return
        for rows, final in self.reranking.blocks(self.queries[start:stop]):
            values = final if self._items is None else final[:, self._items]
            yield rows, Tile.of_keys(values, self.held.start)


def reranked_source(
    rule: KReciprocal, problem: RankingProblem, *, keep: bool = True
) -> RerankedSource:
    """Return the re-ranked distances of a problem's queries and items; `keep`: tiles are wanted.

    Junk takes no part in the neighbour graph, unless the protocol says so, nor what is unknown;
    images of the query's own camera do, and the ranking alone leaves them out.

    Raises:
        UserError: the features are of parts, which have no neighbour graph here.
    """
    query, gallery, selection = problem.query.rows, problem.gallery.rows, problem.selection
    if len(query.shape) != 2:
        raise UserError("re-ranking needs features [N, D]; part features cannot be re-ranked")
    query_rows, gallery_rows = selection.eligible_queries, selection.gallery
    if selection.protocol.junk_in_graph:
        junk = np.flatnonzero(selection.labels.gallery_pids == JUNK)
        gallery_rows = np.union1d(gallery_rows, junk)
    if problem.share.group.world > 1:
        reranking: Reranking = _shared(rule, problem, (query_rows, gallery_rows))
    else:
        itself = gallery is query
        vectors = graph_vectors(
            query,
            None if itself else gallery,
            problem.metric,
            rows=(query_rows, gallery_rows),
            device=problem.device,
        )
        reranking = Reranking(
            vectors,
            None if itself else len(query_rows),
            rule,
            exact=problem.exact,
            keep=keep,
            memory=_spare(problem),
            progress=problem.monitor.step,
        )
    problem.monitor.add("neighbours", sum(reranking.seconds.values()))
    source = RerankedSource(
        reranking,
        np.searchsorted(query_rows, selection.queries),
        np.searchsorted(gallery_rows, selection.gallery),
    )
    return SharedRerankedSource(source) if keep and problem.share.group.world > 1 else source


def _shared(
    rule: KReciprocal, problem: RankingProblem, rows: tuple[np.ndarray, np.ndarray]
) -> SharedReranking:
    """Return the graph of rows of queries and gallery, of which processes hold the gallery.

    Raises:
        UserError: the neighbours cannot be certified, or a side is empty.
    """
    group, held = problem.share.group, problem.held
    one_set = problem.selection.protocol.one_set
    low, high = np.searchsorted(rows[1], [held.start, held.stop]).tolist()

    def vectors(side: int, matrix: ShardedMatrix, chosen: np.ndarray, first: int) -> VectorSet:
        at = torch.from_numpy(chosen)
        parts, places = zip(*in_place(matrix, at - first), strict=True)
        return VectorSet(parts, problem.metric, places, norms=problem.norms[side][at])

    with group.together():
        check_not_empty(*map(len, rows))
        check_on_cpu(problem.device)
        queries = vectors(0, problem.query.rows, rows[0], 0)
        if one_set:
            own = queries.cut(low, high)
        else:
            own = vectors(1, problem.gallery.rows, rows[1][low:high], held.start)
    items = graph_of(queries, own, group, one_set=one_set)
    spare = _spare(problem)
    return SharedReranking(queries, own, items, rule, spare=spare, progress=problem.monitor.step)


def _spare(problem: RankingProblem) -> int | None:
    """Return the bytes that the neighbour graph may take of a problem's memory; None: no bound."""
    memory = problem.placed.memory
    return None if memory is None else memory // 2


def graph_of(
    queries: VectorSet, own: VectorSet | None, group: Group, *, one_set: bool = False
) -> SharedSet:
    """Return what takes part in a graph whose gallery several processes hold; queries are dealt.

    Args:
        queries: all of them, in every process.
        own: the gallery items that this process holds; None for none.
        group: the processes.
        one_set: the gallery is the queries.
    """
    first, last = (0, 0) if one_set else share_of(len(queries), group)
    mine = [queries.cut(first, last)] if first < last else []
    mine += [own] if own is not None and len(own) else []
    counts = [last - first, 0 if own is None else len(own)][one_set:]
    vectors = VectorSet.joined(mine) if mine else None
    return SharedSet.of(vectors, counts, queries.metric, group)


def graph_vectors(
    query: ShardedMatrix,
    gallery: ShardedMatrix | None,
    metric: str,
    *,
    rows: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    device: torch.device | None = None,
) -> VectorSet:
    """Return what takes part in a neighbour graph: the queries, and after them the gallery.

    Args:
        query: feature rows of the queries.
        gallery: of the gallery; None: one set against itself.
        metric: "cosine" or "euclidean".
        rows: rows of both that take part, ascending int64; None for all.
        device: where to compute; that of the queries if None.

    Raises:
        UserError: widths differ, a value is NaN or infinite, or a side is empty.
    """
    sides = [query] if gallery is None else [query, gallery]
    chosen = [
        None if at is None or len(at) == len(side) else torch.from_numpy(at)
        for side, at in zip(sides, rows, strict=False)
    ]
    check_not_empty(
        *(len(side) if at is None else len(at) for side, at in zip(sides, chosen, strict=True))
    )
    return VectorSet(sides, metric, chosen, device=device)


def check_not_empty(*counts: int) -> None:
    """Raise a `UserError` where one of the counts of queries and items is zero."""
    if not all(counts):
        raise UserError("re-ranking needs at least one query and one gallery item, found none")
