"""Ranks in the order of float64 arithmetic, from cheap tiles and a bound on their error.

A tile of approximate keys comes from a product of the features, of their coordinates in a few
directions, or of the features in 8 bits. Pairs that its error bound leaves undecided go through
finer stages and at last to float64. The ranks are those of exact products, whatever the tiles,
threads, stages and machine.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from mmga.common.monitor import Monitor
from mmga.ops.certified import (
    Bound,
    Int8Tile,
    PairVectors,
    count_certain,
    refine_pairs,
    thresholds,
)
from mmga.ops.distance import metric_number
from mmga.ops.kernel_threads import kernels_alone
from mmga.ops.ranking import Masks, Tile
from mmga.retrieval.bounds.approximation import Approximator, Int8
from mmga.retrieval.bounds.planner import (
    COUNTING,
    SAMPLE,
    candidates,
    cheapest,
    making_cost,
    product_cost,
    spread,
    takes_int8,
    undecided_cost,
)
from mmga.retrieval.bounds.stages import StagedRows, Stages
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.metrics.rank import (
    PAIR_LIMIT,
    PerQuery,
    add_up,
    masked,
    matches_of,
    score,
)
from mmga.retrieval.protocols.selection import Pairs, Selection
from mmga.retrieval.tiles.share import Block, QueryShare, Share
from mmga.retrieval.tiles.sources import rows_within, tile_height

# Queries x items of one product: after one of few coordinates the features of its items should stay
# in the cache for exact products; one of whole features, or of these in 8 bits, is better large.
NARROW_TILE, TILE = (2048, 512), (3456, 1024)
# Rows and columns down to which tiles shrink where memory is short.
SMALLEST = 64
# Products of features, in operations, below which there is nothing to save.
_SMALL = 2e9
# Matches of a row up to which a device compares each key with all of them.
_MOST_MATCHES = 512
# Queries and items of the pilot.
_PILOT = (96, 1024)


class CertifiedPass:
    """One pass over queries and gallery that ranks the matches by exact keys."""

    def __init__(
        self,
        queries: VectorSet | QueryShare,
        items: VectorSet | Share,
        selection: Selection,
        stages: Stages,
        memory: int | None = None,
        tile: tuple[int, int] | None = None,
    ) -> None:
        """Take both sides.

        Args:
            queries: the selected queries, or those that this process ranks.
            items: the selected gallery items, likewise, or those that this process holds.
            selection: what counts for which of the queries that this process ranks.
            stages: whose account is kept there.
            memory: bytes that may be allocated here.
            tile: queries x items of one product; None: what suits the stages.

        Raises:
            UserError: `memory` does not suffice for one tile.
        """
        asked = QueryShare.of(queries)
        self._queries, self._share = asked.vectors, Share.of(items)
        self._selection, self._stages = selection, stages
        row_bytes = stages.row_bytes(asked.vectors.dimension) + 64
        height, width = tile or (NARROW_TILE if stages.dimensions else TILE)
        height = min(tile_height(len(asked), height), len(asked))
        width = min(width, len(self._share))

        def fixed() -> int:
            """Return the bytes of a staged gallery block, a tile, and its undecided pairs."""
            return 2 * width * row_bytes + 36 * height * width

        while (
            memory is not None
            and memory < fixed() + height * row_bytes
            and max(height, width) > SMALLEST
        ):
            if width >= height:
                width = -(-width // 2)
            else:
                height = -(-height // 2)
        what = f"{height} x {width} and its features"
        self.max_rows = rows_within(memory, fixed(), height, row_bytes * height, what)
        self._height, self._width = height, width
        self._values: Tensor | None = None

    def rank(self, monitor: Monitor, phase: str = "ranks") -> PerQuery:
        """Rank the matches of all selected queries and return the scores of each query."""
        selection, share = self._selection, self._share
        scores = PerQuery.empty(selection.num_matches)
        self._cameras = selection.cameras(share.vectors.device)
        done, total = 0, len(selection.queries) * len(share.vectors)
        with kernels_alone():
            for pairs in selection.pairs(PAIR_LIMIT, self.max_rows):
                run = _Run(self._queries, share, pairs, self._stages)
                with share.group.together():
                    for block in share.blocks(self._width):
                        items = self._staged(block)
                        for top in range(0, pairs.count, self._height):
                            rows = slice(top, min(top + self._height, pairs.count))
                            self._count(run, rows, block, items)
                            done += (rows.stop - rows.start) * (block.held.stop - block.held.start)
                            monitor.step(phase, done, total)
                add_up(run.matches, share.group)
                score(scores, selection, pairs, run.matches)
        self._stages.add_up(share.group)
        return scores

    def _staged(self, block: Block) -> StagedRows:
        """Return the items of a block at every stage, of length 0 where they are elsewhere."""
        vectors, held = self._share.vectors, block.held
        size = min(self._width, len(self._share) - block.begin)
        norms = vectors.norms[block.own]
        if len(norms) < size:
            norms = norms.new_zeros(size)
            norms[held] = vectors.norms[block.own]
        return self._stages.rows(block.rows[:size].contiguous(), norms, vectors.metric)

    def _count(self, run: _Run, rows: slice, block: Block, items: StagedRows) -> None:
        """Count the items of a block that this process holds for some of the queries of a run."""
        whole, bound = self._tile(run.queries.cut(rows), items, block, fused=run.fused)
        queries = slice(run.start + rows.start, run.start + rows.stop)
        held = slice(block.begin + block.held.start, block.begin + block.held.stop)
        device = items.exact_term.device
        for part, masks in masked(held, self._selection, queries, self._cameras, device):
            columns = slice(part.start - block.begin, part.stop - block.begin)
            tile = whole.cut(columns)
            undecided = run.count(rows, tile, bound.tile(slice(None), columns), masks)
            run.refine(rows, items.cut(columns), tile.offset, undecided)

    def _tile(
        self, queries: StagedRows, items: StagedRows, block: Block, *, fused: bool
    ) -> tuple[Tile | Int8Tile, Bound]:
        """Return the tile of some queries and a block, and the bound of its keys."""
        if fused:
            return queries.int8_tile(items, block.begin)
        if self._values is None:
            size = self._height * self._width
            self._values = torch.empty(size, dtype=torch.float32, device=block.rows.device)
        return queries.tile(items, block.begin, self._values)


class _Run:
    """Queries that are ranked together, at every stage, with their matches' exact keys.

    Attributes:
        start: number of the first query.
        queries: the queries.
        matches: what is counted for them.
        fused: 8-bit products are compared where they are computed, and no tile is held.
    """

    def __init__(self, queries: VectorSet, items: Share, pairs: Pairs, stages: Stages) -> None:
        """Compute the exact keys of the matches of `pairs`."""
        features = queries.block(pairs.start, pairs.stop).contiguous()
        norms = queries.norms[pairs.start : pairs.stop]
        self.start, self.queries = pairs.start, stages.rows(features, norms, queries.metric)
        row = torch.from_numpy(pairs.start + pairs.match_row).to(queries.device)
        item = torch.from_numpy(pairs.match_item).to(queries.device)
        self.matches = matches_of(pairs, items.pair_keys(queries, row, item))
        self._stages = stages
        most = int(np.diff(pairs.match_start).max(initial=0))
        on_device = isinstance(stages.tiles, Int8) and queries.device.type != "cpu"
        self.fused = on_device and most <= _MOST_MATCHES
        slack = self.queries.stages[0].slack
        self._limits = thresholds(self.matches.match_start, self.matches.match_key, slack)

    def count(self, rows: slice, tile: Tile | Int8Tile, bound: Bound, masks: Masks) -> Tensor:
        """Count the pairs of a tile that its bound decides, and return the others."""
        undecided = count_certain(tile, rows, self.matches, self._limits, bound, masks)
        self._stages.stages[0].note((rows.stop - rows.start) * tile.width, len(undecided))
        return undecided

    def refine(self, rows: slice, items: StagedRows, offset: int, undecided: Tensor) -> None:
        """Count undecided pairs of a tile, through finer and finer stages."""
        queries = self.queries.cut(rows)
        stages = self._stages.stages[1:]
        for stage, (one, other, bound) in zip(stages, queries.refinements(items), strict=True):
            still = refine_pairs(
                undecided,
                PairVectors(
                    one.rows,
                    other.rows,
                    queries.exact_term,
                    items.exact_term,
                    metric_number(queries.metric),
                ),
                offset,
                rows,
                self.matches,
                bound,
            )
            stage.note(len(undecided), len(still))
            undecided = still


@kernels_alone()
def plan(
    queries: VectorSet | QueryShare, items: VectorSet | Share, selection: Selection, seed: int = 0
) -> Stages:
    """Choose the stages that counts of a few pairs say are cheapest.

    Args:
        queries: the selected queries, or those that this process ranks.
        items: the selected gallery items, or those that this process holds.
        selection: what is ranked, of the queries of all processes.
        seed: of the directions.
    """
    asked, share = QueryShare.of(queries), Share.of(items)
    vectors = asked.vectors
    width, pairs = vectors.dimension, float(len(asked)) * len(share)
    if vectors.device.type == "cpu" and 2 * pairs * width < _SMALL:
        return Stages()
    first = asked.first(_PILOT[0])
    with asked.grid.together():
        longest = max(asked.longest, share.longest)
        if vectors.device.type != "cpu":  # whose products of 8 bits cost next to nothing
            return Stages(Int8(longest) if takes_int8(width, vectors.device) else None)
        choices = candidates(_sample(share), longest, 2 * pairs * width, seed)
        made = (len(asked) + len(share)) / pairs
        costs = [
            product_cost(tiles, width)
            + COUNTING
            + undecided_cost(width) * _undecided_share(first, share, selection, tiles)
            + making_cost(tiles, width) * made
            for tiles in choices
        ]
        return Stages(cheapest(choices, costs, width + COUNTING))


def _sample(share: Share) -> VectorSet:
    """Return the items that directions are found from, of those of all processes."""
    if share.group.world == 1:
        return share.vectors
    rows, norms = share.take(spread(len(share), SAMPLE))
    return VectorSet([ShardedMatrix([rows])], share.vectors.metric, norms=norms)


def _undecided_share(
    queries: VectorSet, items: Share, selection: Selection, tiles: Approximator
) -> float:
    """Return the share of the pairs of some queries and items that tiles leave undecided."""
    pairs = next(selection.pairs(1 << 16, _PILOT[0]))
    nothing = np.zeros(pairs.count + 1, np.int64)
    pairs = dataclasses.replace(pairs, ignored_start=nothing, ignored_item=nothing[:0])
    stages = Stages(tiles)
    run = _Run(queries, items, pairs, stages)
    chosen = spread(len(items), _PILOT[1], 0.5)
    block = stages.rows(*items.take(chosen), queries.metric)
    tile, bound = run.queries.tile(
        block, 0, torch.empty(pairs.count * len(chosen), dtype=torch.float32, device="cpu")
    )
    undecided = run.count(slice(0, pairs.count), tile, bound, (None, None, None))
    return len(undecided) / tile.values.numel()
