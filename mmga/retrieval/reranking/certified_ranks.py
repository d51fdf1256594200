"""Ranks of re-ranked distances without the distances of queries to gallery.

A final distance is (1 - lambda) J + lambda d'. Items that overlap with a query (J below 1) are
listed. Items without an overlap precede no match whose final distance is below 1 - lambda, so that
most queries of good features need only their lists. For the others tiles of bounded distances
decide nearly all pairs, as in `metrics.rank_certified`, and the rest is computed from exact
distances: with (1 - lambda) (1 - J) / lambda taken off d', an overlap is compared with the same
limits as an item without one.
"""

from __future__ import annotations

import contextlib
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
from mmga.ops.neighbours import squared_distances_
from mmga.ops.ranking import Masks, Matches, Tile
from mmga.retrieval.bounds.approximation import Int8, loop_threads
from mmga.retrieval.bounds.planner import bearable_share
from mmga.retrieval.bounds.stages import StagedRows, Stages
from mmga.retrieval.metrics.rank import PAIR_LIMIT, PerQuery, add_up, matches_of, score
from mmga.retrieval.protocols.selection import Pairs, Selection
from mmga.retrieval.reranking.distances import RerankedSource
from mmga.retrieval.tiles.sources import tile_height

# Queries x items of a product.
_TILE = 2048, 512
# Overlaps that are held at once (36 bytes each while they are listed), the fewest queries that all
# items are compared with, and the queries whose overlaps are counted beforehand.
_OVERLAPS, _LEAST_ROWS, _SAMPLE = 1 << 22, 128, 64
# The share of a query's items up to which exact distances cost less than its row of tiles.
_FEW = 2.0**-9
# Bounds on roundings: of a final distance in float64, and of a few float32 numbers, relative.
_FINAL, _SINGLE = 2.0**-44, 2.0**-21
# Beyond all distances, and what distances stay below that are compared in float32.
_BEYOND, _LARGEST = 1e300, 1e37


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

    with contextlib.ExitStack() as stack:
        stack.enter_context(loop_threads(stages.tiles))
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
                    stack.close()
                    stack.enter_context(loop_threads(stages.tiles))
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
    width = queries.vectors.dimension
    for left, items in tiles.blocks():
        if tiles.look(left, items) > bearable_share(width) and stages.tiles is not None:
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
        listed: pairs that overlap, whose items are held here: row x items + item, ascending [E].
        jaccard: their Jaccard distances, float64 [E].
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
        row, item, self.jaccard = source.overlaps(self.rows)
        self.listed = row * source.columns + item

    def match_keys(self, pairs: Pairs) -> Tensor:
        """Return final distances of the matches that are held here, 0 of others, float64 [M]."""
        row, item = torch.from_numpy(pairs.match_row), torch.from_numpy(pairs.match_item)
        keys, held = torch.zeros(len(item), dtype=torch.float64, device="cpu"), self.source.held
        here = ((item >= held.start) & (item < held.stop)).nonzero()[:, 0]
        row, item = row[here], item[here]
        jaccard = _found(row * self.source.columns + item, self.listed, self.jaccard)
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
        rows = (last < alone).nonzero()[:, 0]
        ends = torch.arange(len(self.rows) + 1, device="cpu") * self.source.columns
        ends = torch.searchsorted(self.listed, ends)
        begin, end = ends[rows], ends[rows + 1]
        near, row = _ranges(begin, end), rows.repeat_interleave(end - begin)
        before = alone * self.jaccard[near] <= last[row]  # others follow all matches
        near, row = near[before], row[before]
        ignored = torch.arange(len(self.rows), device="cpu")
        ignored = ignored.repeat_interleave(matches.ignored_start.diff()) * self.source.columns
        counted = ~torch.isin(self.listed[near], ignored + matches.ignored_item)
        item = self.listed[near] - row * self.source.columns
        if self.cameras is not None:
            counted &= self.cameras[0][row] != self.cameras[1][item]
        numbers = torch.bincount(row[counted], minlength=len(self.rows))
        tiled = (last >= alone) | (numbers > _FEW * (held.stop - held.start))

        chosen = counted & ~tiled[row]
        row, item, near = row[chosen], item[chosen], near[chosen]
        final = self.final(row, item, self.jaccard[near])
        _settle(matches, row, item, final, torch.zeros_like(row), sizes[row])
        return tiled.nonzero()[:, 0]

    def reach(self) -> Tensor:
        """Return bounds on the squared distances of the queries to all items, float64 [R]."""
        if self.rule.divides:
            return self.maxima
        if self.cosine:
            return torch.full_like(self.maxima, 4 * (1 + _SINGLE))
        norms = self.vectors.norms
        return (norms[self.rows].sqrt() + norms.max().sqrt()).square() * (1 + _SINGLE)


class _Tiles:
    """Tiles of some queries and all items, in numbers of which final distances are linear.

    The numbers are squared distances d, or (d / maximum)^2 for the variant that squares d once
    more, less what an overlap takes off.
    """

    def __init__(self, queries: _Queries, rows: Tensor, stages: Stages) -> None:
        """Turn the final distances of the matches into limits for the numbers of tiles.

        Args:
            queries: whose items are looked at.
            rows: the queries that are compared, int64 [R], ascending.
            stages: of the tiles.
        """
        self._queries, self._rows, self._stages = queries, rows, stages
        vectors, chosen, rule = queries.vectors, queries.rows[rows], queries.rule
        self._staged = stages.rows(vectors.take(chosen), vectors.norms[chosen], vectors.metric)
        self._cameras = queries.cameras and (queries.cameras[0][rows], queries.cameras[1])
        matches, self._places = _of_rows(queries.matches, rows)
        self._matches, self._squares = matches, rule.variant == "torchreid"
        source = queries.source
        ends = torch.arange(source.held.start, source.held.stop + _TILE[1], _TILE[1], device="cpu")
        ends = rows[:, None] * source.columns + ends.clamp_max(source.held.stop)
        self._overlaps = torch.searchsorted(queries.listed, ends)  # where those of a block begin

        # A final distance is (1 - lambda) J + lambda t / unit, t a number of a tile.
        reach = queries.reach()[rows]
        unit = reach if rule.divides else torch.full_like(reach, 2.0 if queries.cosine else 1.0)
        void = (reach == 0) | (reach > _LARGEST)  # not compared in float32
        self._scale = torch.full_like(reach, 2.0 if queries.cosine else 1.0)  # of keys' errors
        self._divisor = torch.where(void, 1.0, reach)
        if self._squares:
            self._scale = 2 * self._scale / self._divisor
            unit = reach = torch.ones_like(reach)
        self._shift = (1 - rule.lambda_value) / rule.lambda_value * unit  # of an overlap with J = 0
        void |= self._shift > _LARGEST
        self._shift[void] = 0
        self._slack = (reach + self._shift) * _SINGLE

        row = torch.arange(len(rows), device="cpu").repeat_interleave(matches.match_start.diff())
        final, unit = matches.match_key, unit[row]
        limit = (final - (1 - rule.lambda_value)) / rule.lambda_value * unit
        off = _FINAL * (1 + final.abs()) / rule.lambda_value * unit + _SINGLE * limit.abs()
        off[void[row]] = _BEYOND
        slack = self._staged.stages[0].slack * self._scale * (1 + _SINGLE) + self._slack
        self._limits = (
            thresholds(matches.match_start, limit - off, slack)[0],
            thresholds(matches.match_start, limit + off, slack)[1],
        )
        least, most = (self._keys(row, limit + side * off) for side in (-1, 1))
        self._middles = dataclasses.replace(matches, match_key=least + (most - least) / 2)
        self._middles.preceding, self._middles.tied = matches.preceding, matches.tied
        self._spread = torch.zeros_like(reach).scatter_reduce_(0, row, (most - least) / 2, "amax")

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
        if self._squares:
            tile.values.div_(self._divisor[:, None]).clamp_max_(1).square_()
        overlapping, of = self._take_off_overlaps(tile.values, left)
        masks: Masks = (None, None, None)
        if self._cameras is not None:
            masks = self._cameras[0], self._cameras[1][left : left + len(items)], None
        every = slice(0, len(self._rows))
        undecided = count_certain(
            Tile.of_keys(tile.values, left),
            every,
            self._matches,
            self._limits,
            self._bound(bound),
            masks,
        )
        share = len(undecided) / tile.values.numel()
        row, column = undecided[:, :2].long().unbind(1)
        jaccard = _found(row * len(items) + column, overlapping, of)
        self._settle(undecided[jaccard < 1], left, jaccard[jaccard < 1])
        undecided = undecided[jaccard == 1]
        for one, other, better in self._staged.refinements(items):
            if better is None:
                continue
            terms = self._staged.exact_term, items.exact_term
            better = better._replace(row_slack=better.row_slack + self._spread)
            undecided = refine_pairs(
                undecided,
                PairVectors(one.rows, other.rows, *terms, tile.metric),
                left,
                every,
                self._middles,
                better,
            )
        self._settle(undecided, left, torch.ones(len(undecided), dtype=torch.float64, device="cpu"))
        return share

    def add_to(self, matches: Matches) -> None:
        """Add what was counted to the matches of all queries."""
        matches.preceding[self._places] += self._matches.preceding
        matches.tied[self._rows] += self._matches.tied

    def _take_off_overlaps(self, values: Tensor, left: int) -> tuple[Tensor, Tensor]:
        """Take off a tile's numbers what the overlaps of its pairs do, in place.

        Returns:
            The places of the overlaps in the tile, int64 ascending, and their Jaccard distances.
        """
        queries, source = self._queries, self._queries.source
        block = (left - source.held.start) // _TILE[1]
        begin, end = self._overlaps[:, block], self._overlaps[:, block + 1]
        row = torch.arange(len(begin), device="cpu").repeat_interleave(end - begin)
        place = _ranges(begin, end)
        first = torch.arange(len(begin), device="cpu") * values.shape[1]
        at = queries.listed[place] + (first - self._rows * source.columns - left)[row]
        jaccard = queries.jaccard[place]
        values.view(-1).index_add_(0, at, ((1 - jaccard) * -self._shift[row]).float())
        return at, jaccard

    def _bound(self, bound: Bound) -> Bound:
        """Return the bound of a tile's numbers from that of its keys; rows' slack is in limits."""
        scale = self._scale * (1 + _SINGLE)
        return bound._replace(
            row_radius=bound.row_radius * scale, column_slack=bound.column_slack * scale.max()
        )

    def _keys(self, row: Tensor, numbers: Tensor) -> Tensor:
        """Return the keys of items without an overlap that have these numbers in a tile."""
        squared = numbers.clamp_min(0)
        if self._squares:
            squared = squared.sqrt() * self._divisor[row]
        return squared / (2 if self._queries.cosine else 1)

    def _settle(self, undecided: Tensor, left: int, jaccard: Tensor) -> None:
        """Compare undecided pairs of a block by exact distances."""
        row, column, first, last = undecided.long().unbind(1)
        final = self._queries.final(self._rows[row], column + left, jaccard)
        _settle(self._matches, row, column + left, final, first, last)


def _settle(
    matches: Matches, row: Tensor, item: Tensor, final: Tensor, first: Tensor, last: Tensor
) -> None:
    """Count items with these final distances before the matches `first` to `last` of their rows."""
    counts = last - first
    pair = torch.arange(len(row), device="cpu").repeat_interleave(counts)
    at = _ranges(matches.match_start[row] + first, matches.match_start[row] + last)
    equal = final[pair] == matches.match_key[at]
    before = (final[pair] < matches.match_key[at]) | (equal & (item[pair] < matches.match_item[at]))
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
