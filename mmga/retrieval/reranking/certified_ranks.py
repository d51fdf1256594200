"""Ranks of re-ranked distances without the distances of queries to gallery.

A final distance is (1 - lambda) J + lambda d'. Items that overlap with a query (J below 1) are
listed. Items without an overlap precede no match whose final distance is below 1 - lambda, so that
most queries of good features need only their lists. For the others tiles of bounded distances
decide nearly all pairs, as in `metrics.rank_certified`, and the rest is computed from exact
distances: with (1 - lambda) (1 - J) / lambda taken off d', an overlap is compared with the same
limits as an item without one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mmga.common.monitor import Monitor
from mmga.ops.certified import (
    Bound,
    PairVectors,
    count_certain,
    multiplies_int8,
    refine_pairs,
    thresholds,
)
from mmga.ops.k_reciprocal import take_overlaps_
from mmga.ops.kernel_threads import kernels_alone
from mmga.ops.neighbours import squared_distances_
from mmga.ops.ranking import Masks, Matches, Tile
from mmga.retrieval.bounds.approximation import Int8
from mmga.retrieval.bounds.planner import bearable_share
from mmga.retrieval.bounds.stages import StagedRows, Stages
from mmga.retrieval.metrics.rank import PAIR_LIMIT, PerQuery, add_up, matches_of, score
from mmga.retrieval.protocols.selection import Pairs, Selection
from mmga.retrieval.reranking.distances import RerankedSource
from mmga.retrieval.tiles.sources import tile_height

# Queries x items of a product.
_TILE = 2048, 512
# Overlaps that are held at once (44 bytes each while they are listed), the fewest queries that all
# items are compared with, and the queries whose overlaps are counted beforehand.
_OVERLAPS, _LEAST_ROWS, _SAMPLE = 1 << 22, 128, 64
# The share of a query's items up to which exact distances cost less than its row of tiles.
_FEW = 2.0**-9
# Bounds on roundings: of a final distance in float64, and of a few float32 numbers, relative.
_FINAL, _SINGLE = 2.0**-44, 2.0**-21
# What stays below is compared in float32.
_LARGEST = 1e37
# Comparisons of exact distances that are made together.
_AT_ONCE = 1 << 22


def rank_reranked(
    source: RerankedSource, selection: Selection, monitor: Monitor, phase: str
) -> PerQuery:
    """Rank the matches of all selected queries by re-ranked distances of exact distances.

    Processes of a group count what each one's items add, for the same queries at a time.

    Args:
        source: the graph, and which of its queries and items are ranked; its neighbours certified.
        selection: what counts for which query, without a condition on pairs.
        monitor: is told of pairs done and in all.
        phase: name of this pass for `monitor`.
    """
    vectors, scores = source.reranking.vectors, PerQuery.empty(selection.num_matches)
    stages = Stages(Int8(float(vectors.norms.max()) ** 0.5) if multiplies_int8() else None)
    items = source.held.stop - source.held.start
    done, total = 0, len(selection.queries) * items
    group = source.reranking.processes
    with group.together():
        sample = source.queries[:: max(1, len(source.queries) // _SAMPLE)].contiguous()
        overlaps = len(source.overlaps(sample)[0]) / max(1, len(sample))
    most = max(_LEAST_ROWS, int(_OVERLAPS / max(1.0, group.most(overlaps))))
    height = tile_height(len(selection.queries), min(_TILE[0], most))

    def step(pairs: int) -> None:
        monitor.step(phase, done + pairs, total)

    with kernels_alone():
        for pairs in selection.pairs(PAIR_LIMIT, height):
            with group.together():
                queries = _Queries(source, selection, pairs)
                keys = queries.match_keys(pairs)
            keys = group.union(keys)
            with group.together():
                queries.matches = matches_of(pairs, keys)
                rows = queries.settle_overlaps()
                while not _count(queries, rows, stages, step):  # once more, without 8 bits
                    stages = Stages()
            done += pairs.count * items
            step(0)
            add_up(queries.matches, group)
            score(scores, selection, pairs, queries.matches)
    return scores


def _count(queries: _Queries, rows: Tensor, stages: Stages, step: Callable[[int], None]) -> bool:
    """Count, by tiles, what precedes the matches of some of the queries.

    Args:
        queries: whose counts are added to.
        rows: which of them, int64, ascending.
        stages: of the tiles.
        step: called with the pairs that are done.

    Returns:
        False, and nothing is counted, if 8 bits leave too many pairs undecided.
    """
    if not len(rows):
        return True
    tiles, done = _Tiles(queries, rows, stages), 0
    bearable = bearable_share(stages.tiles, queries.vectors.dimension) if stages.tiles else 1.0
    for left, items in tiles.blocks():
        if tiles.look(left, items) > bearable:
            return False
        done += len(rows) * len(items)
        step(done)
    tiles.add_to(queries.matches)
    return True


class _Queries:
    """Queries that are ranked together, and the items that overlap with them.

    Attributes:
        source: the graph.
        rows: the queries' numbers in it, int64 [R].
        cameras: of the queries, [R], and of all items; None where they do not matter.
        row: of pairs that overlap and whose items are held here, int64 [E], ascending.
        item: of these pairs, ascending in each row.
        jaccard: their Jaccard distances, float64 [E].
        listed: the pairs as numbers, row x items + item.
        matches: by final distances, and what precedes these; set from `match_keys`.
    """

    matches: Matches

    def __init__(self, source: RerankedSource, selection: Selection, pairs: Pairs) -> None:
        """List the items that overlap with the queries of `pairs`."""
        graph, self.source = source.reranking, source
        self.rule, self.vectors = graph.rule, graph.vectors
        self.cosine = graph.vectors.metric == "cosine"
        self.rows = source.queries[pairs.start : pairs.stop]
        self.maxima = graph.maxima[self.rows]
        self.cameras = selection.cameras(source.device)
        if self.cameras is not None:
            self.cameras = self.cameras[0][pairs.start : pairs.stop], self.cameras[1]
        self.row, self.item, self.jaccard = source.overlaps(self.rows)
        self.listed = self.number(self.row, self.item)

    def number(self, row: Tensor, item: Tensor) -> Tensor:
        """Return the numbers of pairs."""
        return row * self.source.columns + item

    def match_keys(self, pairs: Pairs) -> Tensor:
        """Return final distances of the matches that are held here, 0 of others, float64 [M]."""
        row, item = torch.from_numpy(pairs.match_row), torch.from_numpy(pairs.match_item)
        keys, held = torch.zeros(len(item), dtype=torch.float64, device="cpu"), self.source.held
        here = ((item >= held.start) & (item < held.stop)).nonzero()[:, 0]
        row, item = row[here], item[here]
        jaccard = _found(self.number(row, item), self.listed, self.jaccard)
        keys[here] = self.final(row, item, jaccard)
        return keys

    def final(self, row: Tensor, item: Tensor, jaccard: Tensor) -> Tensor:
        """Return the final distances of pairs, as `ops.mix_distances` computes them."""
        rule, largest, items = self.rule, self.maxima[row], self.source.vectors_of(item)
        squared = self.vectors.pair_distances(self.rows[row], items)
        if rule.variant == "fastreid":
            original = squared * (0.5 if self.cosine else 1.0)
        else:
            if rule.variant == "torchreid":
                squared, largest = squared * squared, largest * largest
            original = torch.where(largest > 0, squared / largest, 0.0)
        return (1 - rule.lambda_value) * jaccard + rule.lambda_value * original

    def settle_overlaps(self) -> Tensor:
        """Decide what precedes the matches of rows that need no tiles; return the other rows.

        Those are the rows with a match that items without an overlap may precede, or with so many
        overlaps before the last match that tiles cost less than their exact distances.
        """
        matches, held = self.matches, self.source.held
        sizes, alone = matches.match_start.diff(), 1 - self.rule.lambda_value
        last = torch.full((len(self.rows),), -torch.inf, dtype=torch.float64, device="cpu")
        last[sizes > 0] = matches.match_key[matches.match_start[1:][sizes > 0] - 1]
        # No final distance is below its share of J: those left out follow all matches.
        near = (last < alone)[self.row] & (alone * self.jaccard <= last[self.row])
        near = near.nonzero()[:, 0]
        ignored = torch.arange(len(self.rows), device="cpu")
        ignored = ignored.repeat_interleave(matches.ignored_start.diff())
        ignored = self.number(ignored, matches.ignored_item)
        near = near[~torch.isin(self.listed[near], ignored)]
        if self.cameras is not None:
            of_queries, of_items = self.cameras
            near = near[of_queries[self.row[near]] != of_items[self.item[near]]]
        numbers = torch.bincount(self.row[near], minlength=len(self.rows))
        tiled = (last >= alone) | (numbers > _FEW * (held.stop - held.start))

        near = near[~tiled[self.row[near]]]
        row, item = self.row[near], self.item[near]
        final = self.final(row, item, self.jaccard[near])
        _settle(matches, row, item, final, torch.zeros_like(row), sizes[row])
        return tiled.nonzero()[:, 0]

    def farthest(self) -> Tensor:
        """Return bounds on the squared distances of the queries to all items, float64 [R]."""
        if self.rule.divides:
            return self.maxima
        if self.cosine:
            return torch.full_like(self.maxima, 4 * (1 + _SINGLE))
        norms = self.vectors.norms
        return (norms[self.rows].sqrt() + norms.max().sqrt()).square() * (1 + _SINGLE)


class _Numbers:
    """Numbers of pairs of which the final distances of a row are linear.

    A final distance is (1 - lambda) + lambda t / unit. The number t is the squared distance d, or
    (d / largest)^2 for the variant that squares d once more, less (1 - J) shift.

    Attributes:
        unit: float64 [R].
        shift: what an overlap with J = 0 takes off, float64 [R].
        slope: an error of a key makes one of the number that is at most so many times as large,
            float64 [R].
        rounding: bound on the error that roundings of final distances make, float64 [R].
        single: bound on the error that roundings to and in float32 make, float64 [R].
        lost: rows whose numbers float32 does not tell apart; shift and slope are 0, bool [R].
    """

    def __init__(self, queries: _Queries, rows: Tensor, last: Tensor) -> None:
        """Find the numbers of some rows.

        Args:
            queries: all of them.
            rows: which of them, int64 [R].
            last: largest final distance of their matches, float64 [R].
        """
        self._rule, self._key = queries.rule, 2.0 if queries.cosine else 1.0  # d / key
        share, self._largest = self._rule.lambda_value, queries.farthest()[rows]
        self._squares = self._rule.variant == "torchreid"
        reach, self.slope = self._largest, torch.full_like(self._largest, self._key)
        if self._squares:  # |a^2 - b^2| <= 2 |a - b| for a and b from 0 to 1
            reach, self.slope = torch.ones_like(reach), 2 * self._key / self._largest
        self.unit = reach if self._rule.divides else torch.full_like(reach, self._key)
        self.shift = (1 - share) / share * self.unit
        self.rounding = _FINAL * (1 + last) / share * self.unit
        self.single = _SINGLE * (reach + self.shift)
        self.lost = (self._largest == 0) | ~(reach + self.shift < _LARGEST)
        self.shift[self.lost] = self.slope[self.lost] = 0

    def of_matches(self, row: Tensor, final: Tensor) -> Tensor:
        """Return the numbers of no overlap that have these final distances, float64 [M]."""
        share = self._rule.lambda_value
        numbers = (final - (1 - share)) / share * self.unit[row]
        return numbers.masked_fill_(self.lost[row], 0)

    def of_squared_(self, squared: Tensor) -> None:
        """Turn a tile of squared distances into numbers of no overlap, in place."""
        if self._squares:  # these distances are float32 numbers
            largest = self._largest.masked_fill(self.lost, 1).float()
            squared.div_(largest[:, None]).clamp_max_(1).square_()

    def keys(self, row: Tensor | slice, numbers: Tensor) -> Tensor:
        """Return the keys of no overlap that have these numbers, float64."""
        squared = numbers.clamp_min(0)
        if self._squares:
            squared = squared.sqrt() * self._largest[row]
        return squared / self._key

    def tile_slack(self, slack: Tensor) -> Tensor:
        """Return bounds on the errors of rows' numbers in tiles from those of their keys."""
        errors = slack * self.slope * (1 + _SINGLE) + self.single + self.rounding
        return errors.masked_fill_(self.lost, torch.inf)

    def key_slack(self) -> Tensor:
        """Return bounds on how far `keys` of matches are from those that roundings may separate."""
        # |sqrt a - sqrt b| <= sqrt |a - b|
        errors = self.keys(slice(None), self.rounding) + _SINGLE * self._largest / self._key
        return errors.masked_fill_(self.lost, torch.inf)

    def bound(self, bound: Bound) -> Bound:
        """Return the bound of a tile's numbers from that of its keys, less the rows' slack."""
        slope = self.slope * (1 + _SINGLE)
        return bound._replace(
            row_radius=bound.row_radius * slope, column_slack=bound.column_slack * slope.max()
        )


class _Tiles:
    """Tiles of the numbers of some queries and all items."""

    def __init__(self, queries: _Queries, rows: Tensor, stages: Stages) -> None:
        """Turn the final distances of the matches into limits for the numbers of tiles.

        Args:
            queries: whose items are looked at.
            rows: the queries that are compared, int64 [R], ascending.
            stages: of the tiles.
        """
        self._queries, self._rows, self._stages = queries, rows, stages
        vectors, chosen = queries.vectors, queries.rows[rows]
        self._staged = stages.rows(vectors.take(chosen), vectors.norms[chosen], vectors.metric)
        self._cameras = queries.cameras and (queries.cameras[0][rows], queries.cameras[1])
        source = queries.source
        ends = torch.arange(source.held.start, source.held.stop + _TILE[1], _TILE[1], device="cpu")
        ends = queries.number(rows[:, None], ends.clamp_max(source.held.stop))
        # Where those of a block begin, [blocks + 1, R].
        self._overlaps = torch.searchsorted(queries.listed, ends).T.contiguous()

        matches, self._places = _of_rows(queries.matches, rows)
        last = matches.match_key[matches.match_start[1:] - 1]  # rows without a match need no tiles
        row = torch.arange(len(rows), device="cpu").repeat_interleave(matches.match_start.diff())
        self._matches, self._numbers = matches, _Numbers(queries, rows, last)
        limits = self._numbers.of_matches(row, matches.match_key)
        slack = self._numbers.tile_slack(self._staged.stages[0].slack)
        self._limits = thresholds(matches.match_start, limits, slack)
        # The same as keys, for products of 16 bits; what these count is counted in one place.
        self._by_key = dataclasses.replace(matches, match_key=self._numbers.keys(row, limits))
        self._by_key.preceding, self._by_key.tied = matches.preceding, matches.tied

    def blocks(self) -> Iterator[tuple[int, StagedRows]]:
        """Yield the items held here block by block at every stage, each with its first item."""
        vectors, source = self._queries.vectors, self._queries.source
        for left in range(source.held.start, source.held.stop, _TILE[1]):
            items = torch.arange(left, min(left + _TILE[1], source.held.stop), device="cpu")
            chosen = source.vectors_of(items)
            first, last = int(chosen[0]), int(chosen[-1]) + 1
            whole = last - first == len(chosen)
            features = vectors.block(first, last).contiguous() if whole else vectors.take(chosen)
            yield left, self._stages.rows(features, vectors.norms[chosen], vectors.metric)

    def look(self, left: int, items: StagedRows) -> float:
        """Count the pairs of all rows and of a block; return the share that its tile left open."""
        cosine = self._queries.cosine
        values = torch.empty(len(self._rows) * len(items), dtype=torch.float32, device="cpu")
        tile, bound = self._staged.tile(items, left, values)
        squared_distances_(tile.values, tile.row_term, tile.column_term, cosine=cosine)
        self._numbers.of_squared_(tile.values)
        self._take_off_overlaps(tile.values, left)
        masks: Masks = (None, None, None)
        if self._cameras is not None:
            masks = self._cameras[0], self._cameras[1][left : left + len(items)], None
        every = slice(0, len(self._rows))
        undecided = count_certain(
            Tile.of_keys(tile.values, left),
            every,
            self._matches,
            self._limits,
            self._numbers.bound(bound),
            masks,
        )
        share = len(undecided) / tile.values.numel()
        jaccard = self._jaccard(undecided, left)
        self._settle(undecided[jaccard < 1], left, jaccard[jaccard < 1])
        undecided = undecided[jaccard == 1]
        for one, other, better in self._staged.refinements(items):
            if better is None:
                continue
            terms = self._staged.exact_term, items.exact_term
            better = better._replace(row_slack=better.row_slack + self._numbers.key_slack())
            undecided = refine_pairs(
                undecided,
                PairVectors(one.rows, other.rows, *terms, tile.metric),
                left,
                every,
                self._by_key,
                better,
            )
        self._settle(undecided, left, torch.ones(len(undecided), dtype=torch.float64, device="cpu"))
        return share

    def add_to(self, matches: Matches) -> None:
        """Add what was counted to the matches of all queries."""
        matches.preceding[self._places] += self._matches.preceding
        matches.tied[self._rows] += self._matches.tied

    def _take_off_overlaps(self, values: Tensor, left: int) -> None:
        """Take off a tile's numbers what the overlaps of its pairs do, in place."""
        queries = self._queries
        block = (left - queries.source.held.start) // _TILE[1]
        ranges = self._overlaps[block], self._overlaps[block + 1]
        shift = self._numbers.shift
        take_overlaps_(values, ranges, queries.item, queries.jaccard, shift, left)

    def _jaccard(self, undecided: Tensor, left: int) -> Tensor:
        """Return the Jaccard distances of undecided pairs of a block, float64 [P]."""
        queries, (row, column) = self._queries, undecided[:, :2].long().unbind(1)
        pairs = queries.number(self._rows[row], column + left)
        return _found(pairs, queries.listed, queries.jaccard)

    def _settle(self, undecided: Tensor, left: int, jaccard: Tensor) -> None:
        """Compare undecided pairs of a block by exact distances."""
        row, column, first, last = undecided.long().unbind(1)
        final = self._queries.final(self._rows[row], column + left, jaccard)
        _settle(self._matches, row, column + left, final, first, last)


def _settle(
    matches: Matches, row: Tensor, item: Tensor, final: Tensor, first: Tensor, last: Tensor
) -> None:
    """Count items with these final distances before the matches `first` to `last` of their rows."""
    if not len(row):
        return
    start = matches.match_start[row]
    begin, end = start + first, start + last
    step = max(1, _AT_ONCE // max(1, int((end - begin).max())))
    for part in torch.arange(len(row), device="cpu").split(step):
        at = _ranges(begin[part], end[part])
        pair = part.repeat_interleave((end - begin)[part])
        equal = final[pair] == matches.match_key[at]
        before = equal & (item[pair] < matches.match_item[at])
        before |= final[pair] < matches.match_key[at]
        matches.preceding.index_add_(0, at, before.long())
        matches.tied.index_add_(0, row[pair], equal.long())


def _of_rows(matches: Matches, rows: Tensor) -> tuple[Matches, Tensor]:
    """Return the matches of some rows, nothing counted, and their places among all."""
    lists = []
    for starts in (matches.match_start, matches.ignored_start):
        begin, end = starts[rows], starts[rows + 1]
        lists.append(
            (torch.cat([begin.new_zeros(1), (end - begin).cumsum(0)]), _ranges(begin, end))
        )
    (match_start, match), (ignored_start, ignored) = lists
    item, key = matches.match_item[match], matches.match_key[match]
    return Matches(match_start, item, key, ignored_start, matches.ignored_item[ignored]), match


def _found(pairs: Tensor, listed: Tensor, jaccard: Tensor) -> Tensor:
    """Return the Jaccard distances of pairs: those of the pairs that are listed, 1 of others."""
    if not len(listed):
        return torch.ones(len(pairs), dtype=torch.float64, device="cpu")
    at = torch.searchsorted(listed, pairs).clamp_max(len(listed) - 1)
    return torch.where(listed[at] == pairs, jaccard[at], 1.0)


def _ranges(begin: Tensor, end: Tensor) -> Tensor:
    """Return the integers of half-open ranges, one range after the other."""
    sizes = end - begin
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum()), device="cpu") + (begin - before).repeat_interleave(sizes)
