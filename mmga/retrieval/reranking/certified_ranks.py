"""Ranks of re-ranked distances without the distances of queries to gallery.

A final distance is (1 - lambda) J + lambda d'. Items that overlap with a query (J below 1) are few
and listed; of all others the order is that of d alone, so that the final distance of a match bounds
the d of what precedes it. Tiles of bounded keys decide nearly all pairs, as in
`metrics.rank_certified`, and the rest is computed from exact distances.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

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
from mmga.ops.distance import metric_number
from mmga.ops.ranking import Masks, Matches, Tile
from mmga.retrieval.bounds.approximation import Int8, loop_threads
from mmga.retrieval.bounds.stages import StagedRows, Stages
from mmga.retrieval.metrics.rank import PAIR_LIMIT, PerQuery, add_up, matches_of, score
from mmga.retrieval.protocols.selection import Pairs, Selection
from mmga.retrieval.reranking.distances import RerankedSource
from mmga.retrieval.tiles.sources import tile_height

# Queries x items of a product.
_TILE = 2048, 512
# The share of a tile's pairs that 8 bits may leave undecided: with more, tiles of features cost
# less.
_UNDECIDED = 0.2
# Bounds on roundings: of a final distance in float64, and of d to float32, relative.
_FINAL, _SINGLE = 2.0**-44, 2.0**-22
# Keys below and above all others.
_BELOW, _ABOVE = -1e300, 1e300
# Numbers that are compared at once.
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
    height = tile_height(len(selection.queries), _TILE[0])
    done, total = 0, len(selection.queries) * (source.held.stop - source.held.start)
    group = source.reranking.processes
    with contextlib.ExitStack() as stack:
        stack.enter_context(loop_threads(stages.tiles))
        for pairs in selection.pairs(PAIR_LIMIT, height):
            with group.together():
                run = _Run(source, selection, pairs, stages)
            keys = group.union(run.keys)
            with group.together():
                run.take(keys)
                blocks = run.blocks()
                for block in blocks:
                    share = run.look(block)
                    if share > _UNDECIDED and stages.tiles is not None:  # once more, without 8 bits
                        stages = Stages()
                        stack.close()
                        stack.enter_context(loop_threads(stages.tiles))
                        run = _Run(source, selection, pairs, stages)
                        run.take(keys)
                        blocks = run.blocks()
                        break
                    done += pairs.count * len(block[1])
                    monitor.step(phase, done, total)
                for block in blocks:
                    run.look(block)
                    done += pairs.count * len(block[1])
                    monitor.step(phase, min(done, total), total)
            add_up(run.matches, group)
            score(scores, selection, pairs, run.matches)
    return scores


class _Run:
    """Queries that are ranked together.

    Attributes:
        keys: final distances of the matches that this process holds, 0 of others, float64 [M].
        matches: their matches by final distances, and what precedes these.
    """

    def __init__(
        self, source: RerankedSource, selection: Selection, pairs: Pairs, stages: Stages
    ) -> None:
        """Compute final distances of the matches, and list the items with an overlap."""
        graph = source.reranking
        self._source, self._vectors, self._rule = source, graph.vectors, graph.rule
        self._stages, self._metric = stages, graph.vectors.metric
        self._rows = source.queries[pairs.start : pairs.stop]
        self._maxima, norms = graph.maxima[self._rows], graph.vectors.norms[self._rows]
        self._staged = stages.rows(graph.vectors.take(self._rows), norms, self._metric)
        self._cameras = selection.cameras(graph.device)
        if self._cameras is not None:
            self._cameras = self._cameras[0][pairs.start : pairs.stop], self._cameras[1]
        self._pairs, self._listed = pairs, source.overlaps(self._rows)
        overlap_row, overlap_item, overlap = self._listed
        listed = overlap_row * source.columns + overlap_item
        row, item = torch.from_numpy(pairs.match_row), torch.from_numpy(pairs.match_item)
        self.keys = torch.zeros(len(item), dtype=torch.float64, device="cpu")
        here = ((item >= source.held.start) & (item < source.held.stop)).nonzero()[:, 0]
        row, item = row[here], item[here]
        wanted = row * source.columns + item
        at = torch.searchsorted(listed, wanted).clamp_max(max(0, len(listed) - 1))
        jaccard = torch.ones(len(row), dtype=torch.float64, device="cpu")
        if len(listed):
            jaccard = torch.where(listed[at] == wanted, overlap[at], jaccard)
        distance = self._vectors.pair_distances(self._rows[row], source.vectors_of(item))
        self.keys[here] = self._final(row, jaccard, distance)

    def take(self, keys: Tensor) -> None:
        """Take the final distances of all matches, float64 [M], before blocks are looked at."""
        self.matches = matches_of(self._pairs, keys)
        width, count = self._source.columns, self._pairs.count
        row, item, overlap = self._listed
        listed = row * width + item
        self._order_overlaps(row, item, overlap, listed)
        self._bound_matches(listed, width, count)

    def blocks(self) -> Iterator[tuple[int, StagedRows]]:
        """Yield the items held here block by block at every stage, each with its first item."""
        vectors, held = self._vectors, self._source.held
        for left in range(held.start, held.stop, _TILE[1]):
            items = torch.arange(left, min(left + _TILE[1], held.stop), device="cpu")
            chosen = self._source.vectors_of(items)
            first, last = int(chosen[0]), int(chosen[-1]) + 1
            whole = last - first == len(chosen)
            features = vectors.block(first, last).contiguous() if whole else vectors.take(chosen)
            yield left, self._stages.rows(features, vectors.norms[chosen], self._metric)

    def look(self, block: tuple[int, StagedRows]) -> float:
        """Count the pairs of all rows and of a block; return the share that its tile left open."""
        left, items = block
        values = torch.empty(len(self._rows) * len(items), dtype=torch.float32, device="cpu")
        tile, bound = self._staged.tile(items, left, values)
        self._count_overlaps(tile, bound)
        masks: Masks = (None, None, None)
        if self._cameras is not None:
            masks = self._cameras[0], self._cameras[1][left : left + len(items)], None
        every = slice(0, len(self._rows))
        undecided = count_certain(tile, every, self._others, self._limits, bound, masks)
        share = len(undecided) / tile.values.numel()
        for one, other, better in self._staged.refinements(items):
            if better is None:
                continue
            terms = self._staged.exact_term, items.exact_term
            better = better._replace(row_slack=better.row_slack + self._spread)
            undecided = refine_pairs(
                undecided,
                PairVectors(one.rows, other.rows, *terms, metric_number(self._metric)),
                left,
                every,
                self._middles,
                better,
            )
        row, column, first, last = undecided.long().unbind(1)
        jaccard = torch.ones(len(row), dtype=torch.float64, device="cpu")
        self._settle(row, column + left, jaccard, first, last)
        return share

    def _final(self, row: Tensor, jaccard: Tensor, squared: Tensor) -> Tensor:
        """Return the final distances of pairs, as `ops.mix_distances` computes them."""
        rule, largest = self._rule, self._maxima[row]
        if rule.variant == "fastreid":
            original = squared * (0.5 if self._metric == "cosine" else 1.0)
        else:
            if rule.variant == "torchreid":
                squared, largest = squared * squared, largest * largest
            original = torch.where(largest > 0, squared / largest, 0.0)
        return (1 - rule.lambda_value) * jaccard + rule.lambda_value * original

    def _distance_of(self, row: Tensor, final: Tensor, side: int) -> Tensor:
        """Return keys of no overlap whose final distance is surely below (-1) or above (1)."""
        rule = self._rule
        original = (final - (1 - rule.lambda_value)) / rule.lambda_value
        original += side * _FINAL * (1 + final.abs()) / rule.lambda_value
        largest = self._maxima[row]
        if rule.variant == "fastreid":
            squared = original / (0.5 if self._metric == "cosine" else 1.0)
        elif rule.variant == "torchreid":
            squared = original.clamp_min(0).sqrt() * largest
        else:
            squared = original * largest
        squared = squared * (1 + side * _SINGLE) + side * 2.0**-140
        key = torch.where(original < 0, _BELOW, squared / (2 if self._metric == "cosine" else 1))
        if rule.variant == "fastreid":
            return key
        return torch.where(largest > 0, key, side * _ABOVE)

    def _bound_matches(self, listed: Tensor, width: int, count: int) -> None:
        """Prepare what tiles are compared with: all items but those listed, as keys."""
        matches = self.matches
        row = torch.arange(count, device="cpu").repeat_interleave(matches.match_start.diff())
        ignored = torch.arange(count, device="cpu").repeat_interleave(matches.ignored_start.diff())
        ignored = torch.cat([ignored * width + matches.ignored_item, listed]).unique()
        starts = torch.searchsorted(ignored, torch.arange(count + 1, device="cpu") * width)
        low = self._distance_of(row, matches.match_key, -1)
        high = self._distance_of(row, matches.match_key, 1)
        middle = low + (high - low) / 2
        self._others = _sharing(matches, matches.match_key, starts, ignored % width)
        self._middles = _sharing(matches, middle, starts, ignored % width)
        slack = self._staged.stages[0].slack
        self._limits = (
            thresholds(matches.match_start, low, slack)[0],
            thresholds(matches.match_start, high, slack)[1],
        )
        self._spread = torch.zeros(count, dtype=torch.float64, device="cpu")
        self._spread.scatter_reduce_(0, row, (high - low) / 2, "amax")

    def _order_overlaps(self, row: Tensor, item: Tensor, overlap: Tensor, listed: Tensor) -> None:
        """Keep the items with an overlap that are counted, in the order of items."""
        matches, count = self.matches, len(self._rows)
        ignored = torch.arange(count, device="cpu").repeat_interleave(matches.ignored_start.diff())
        counted = ~torch.isin(listed, ignored * self._source.columns + matches.ignored_item)
        if self._cameras is not None:
            counted &= self._cameras[0][row] != self._cameras[1][item]
        row, item, overlap = row[counted], item[counted], overlap[counted]
        order = item.argsort(stable=True)
        self._overlaps = row[order], item[order], overlap[order]
        sizes = matches.match_start.diff()
        most = int(sizes.max()) if count else 0
        place = torch.arange(most, device="cpu")
        at = (matches.match_start[:-1, None] + place).clamp_max(max(0, len(matches.match_key) - 1))
        keys = matches.match_key[at] if len(matches.match_key) else at.double()
        self._match_keys = torch.where(place < sizes[:, None], keys, torch.inf)

    def _count_overlaps(self, tile: Tile, bound: Bound) -> None:
        """Count the items of a tile that overlap with a row's query."""
        rows, items, overlaps = self._overlaps
        ends = torch.tensor(
            [tile.offset, tile.offset + tile.values.shape[1]], dtype=torch.int64, device="cpu"
        )
        begin, end = torch.searchsorted(items, ends).tolist()
        step = max(1, _AT_ONCE // max(1, self._match_keys.shape[1]))
        for low in range(begin, end, step):
            some = slice(low, min(low + step, end))
            row, item, overlap = rows[some], items[some], overlaps[some]
            column = item - tile.offset
            key = tile.at(row, item).double()
            off = bound.row_radius[row] * bound.column_radius[column]
            off = off + bound.row_slack[row] + bound.column_slack[column]
            least, most = (
                self._final(row, overlap, self._squared(key + side * off, side)) for side in (-1, 1)
            )
            roundings = _FINAL * (1 + most.abs())
            keys = self._match_keys[row]
            first = (keys < (least - roundings)[:, None]).sum(1)
            last = (keys <= (most + roundings)[:, None]).sum(1)
            self._precede(row, last)
            open_ = first < last
            self._settle(row[open_], item[open_], overlap[open_], first[open_], last[open_])

    def _squared(self, keys: Tensor, side: int) -> Tensor:
        """Return squared distances from keys, rounded down (-1) or up (1)."""
        squared = keys.clamp_min(0) * (2 if self._metric == "cosine" else 1)
        return squared * (1 + side * _SINGLE)

    def _precede(self, row: Tensor, first: Tensor) -> None:
        """Count items that precede the matches of their rows from a place on."""
        matches = self.matches
        starts = matches.match_start[row]
        some = first < matches.match_start[row + 1] - starts
        begun = (starts + first)[some].bincount(minlength=len(matches.match_key) + 1).cumsum(0)
        before = torch.cat([begun.new_zeros(1), begun])[matches.match_start[:-1]]
        sizes = matches.match_start.diff()
        matches.preceding += begun[: len(matches.match_key)] - before.repeat_interleave(sizes)

    def _settle(
        self, row: Tensor, item: Tensor, jaccard: Tensor, first: Tensor, last: Tensor
    ) -> None:
        """Compare items with the matches `first` to `last` of their rows by exact distances."""
        if not len(row):
            return
        matches = self.matches
        chosen = self._source.vectors_of(item)
        final = self._final(row, jaccard, self._vectors.pair_distances(self._rows[row], chosen))
        counts = last - first
        pair = torch.arange(len(row), device="cpu").repeat_interleave(counts)
        place = torch.arange(len(pair), device="cpu") - (counts.cumsum(0) - counts)[pair]
        at = matches.match_start[row[pair]] + first[pair] + place
        equal = final[pair] == matches.match_key[at]
        before = (final[pair] < matches.match_key[at]) | (
            equal & (item[pair] < matches.match_item[at])
        )
        matches.preceding.index_add_(0, at, before.long())
        matches.tied.index_add_(0, row[pair], equal.long())


def _sharing(matches: Matches, keys: Tensor, ignored_start: Tensor, ignored: Tensor) -> Matches:
    """Return matches with other keys and ignored items, whose counts are those of `matches`."""
    other = dataclasses.replace(
        matches, match_key=keys, ignored_start=ignored_start, ignored_item=ignored
    )
    other.preceding, other.tied = matches.preceding, matches.tied
    return other
