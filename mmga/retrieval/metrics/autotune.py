"""Which cascade is worth its cost: measured on a few pairs before the pass.

Whatever is chosen, the ranks are the same; only time depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmga.ops.certified import count_certain, settle_pairs, thresholds
from mmga.ops.distance import metric_number
from mmga.ops.ranking import Matches, Tile
from mmga.retrieval.bounds.approximation import (
    Tiles,
    bound_between,
    tile_products,
)
from mmga.retrieval.bounds.candidates import bytes_for, directions_of, narrowed, spread
from mmga.retrieval.bounds.stages import Block, Cascade
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.metrics.rank_certified import pair_keys
from mmga.retrieval.protocols.protocol import Selection

# Queries and items of the pilot.
_PILOT = (96, 1024)
# Undecided pairs that are settled to see what one costs.
_SETTLED = 8192
# Products of features, in operations, below which there is nothing to save.
_SMALL = 2e9
# A coordinate costs so many times an operation of a product to make: residuals and norms.
_COORDINATE = 8
# A dimension, so many to be rounded to an integer.
_INTEGER = 16


class Pilot:
    """A few queries with their matches, a few items, and what each step costs for a pair."""

    def __init__(
        self,
        query: Rows,
        query_norms: Tensor,
        gallery: Rows,
        gallery_norms: Tensor,
        selection: Selection,
        metric: str,
    ) -> None:
        """Take the first queries and evenly spaced items.

        Args:
            query: the query features.
            query_norms: squared norms, float64 [Q].
            gallery: the gallery features.
            gallery_norms: float64 [G].
            selection: what is ranked.
            metric: cosine or euclidean.
        """
        self._metric, self._number = metric, metric_number(metric)
        pairs = next(selection.pairs(1 << 16, _PILOT[0]))
        rows = torch.from_numpy(selection.queries[pairs.start : pairs.stop])
        chosen = spread(len(selection.gallery), _PILOT[1], 0.5)
        items = torch.from_numpy(selection.gallery)[chosen]
        row = torch.repeat_interleave(
            torch.arange(len(rows)), torch.from_numpy(pairs.match_start).diff()
        )
        match = torch.from_numpy(selection.gallery)[torch.from_numpy(pairs.match_item)]
        keys = pair_keys(
            query,
            rows[row],
            query_norms[rows[row]],
            gallery,
            match,
            gallery_norms[match],
            metric,
        )
        nothing = torch.zeros(len(rows) + 1, dtype=torch.int64)
        start = torch.from_numpy(pairs.match_start)
        self._matches = Matches.of(start, match, keys, nothing, nothing[:0])
        self._rows = slice(0, len(rows))
        self._features = query.take(rows), gallery.take(items)
        self._norms = query_norms[rows], gallery_norms[items]
        self._values = torch.empty(len(rows), len(items))

    @property
    def pairs(self) -> int:
        """Pairs of the pilot."""
        return self._values.numel()

    def blocks(self, cascade: Cascade) -> tuple[Block, Block]:
        """Return both sides at the levels of a cascade."""
        sides = []
        for features, norms in zip(self._features, self._norms, strict=True):
            coordinates = torch.empty(len(features), cascade.dimensions)
            sides.append(cascade.block(features, norms, self._metric, coordinates))
        return sides[0], sides[1]

    def product_seconds(self, cascade: Cascade) -> float:
        """Return the time of a pair of a tile's product."""
        queries, items = (side.levels[0] for side in self.blocks(cascade))
        seconds, _ = _shortest(lambda: tile_products(queries, items, self._values))
        return seconds / self.pairs

    def count(self, cascade: Cascade) -> tuple[float, Tensor]:
        """Return the time to count a pair of a tile, and the undecided pairs."""
        queries, items = self.blocks(cascade)
        tile_products(queries.levels[0], items.levels[0], self._values)
        tile = Tile(self._values, 0, self._number, queries.tile_term, items.tile_term)
        bound = bound_between(queries.levels[0], items.levels[0], self._metric)
        slack = queries.levels[0].slack
        lower, upper = thresholds(self._matches.match_start, self._matches.match_key, slack)
        seconds, undecided = _shortest(
            lambda: count_certain(tile, self._rows, self._matches, lower, upper, bound)
        )
        return seconds / self.pairs, undecided

    def settle_seconds(self, undecided: Tensor, cascade: Cascade) -> float:
        """Return the time to settle a pair by the levels after the tile."""
        queries, items = self.blocks(cascade)
        levels = list(zip(queries.levels[1:], items.levels[1:], strict=True))

        def settle() -> None:
            pairs = undecided[:_SETTLED]
            for one, other in levels:
                bound = bound_between(one, other, self._metric)
                pairs = settle_pairs(
                    pairs,
                    one.rows,
                    other.rows,
                    queries.exact_term,
                    items.exact_term,
                    self._number,
                    0,
                    self._rows,
                    self._matches,
                    None if one is queries.levels[-1] else bound,
                )

        seconds, _ = _shortest(settle)
        return seconds / max(1, min(_SETTLED, len(undecided)))


def plan(
    query: Rows,
    query_norms: Tensor,
    gallery: Rows,
    gallery_norms: Tensor,
    selection: Selection,
    metric: str,
    seed: int = 0,
) -> Cascade:
    """Choose the levels that a pilot says are cheapest: of coordinates, of 8 bits, or plain tiles.

    Args:
        query: the query features.
        query_norms: squared norms, float64 [Q].
        gallery: the gallery features.
        gallery_norms: float64 [G].
        selection: what is ranked.
        metric: cosine or euclidean.
        seed: of the directions.
    """
    if not len(selection.queries):
        return Cascade()
    width, items = gallery.shape[1], len(selection.gallery)
    operations = 2.0 * len(selection.queries) * items * width
    if operations < _SMALL:
        return Cascade()
    rows = torch.from_numpy(selection.gallery)
    subspace = directions_of(
        lambda chosen: gallery.take(rows[chosen]), items, width, metric, operations, seed
    )
    longest = max(float(norms.max()) for norms in (query_norms, gallery_norms)) ** 0.5
    kinds: list[Tiles] = [*narrowed(subspace), *bytes_for(width, longest)]
    choices = [Cascade(tiles) for tiles in kinds]
    if not choices:
        return Cascade()
    pilot = Pilot(query, query_norms, gallery, gallery_norms, selection, metric)
    return _cheapest(pilot, choices, len(selection.queries), items, width)


def _cheapest(
    pilot: Pilot, choices: list[Cascade], queries: int, items: int, width: int
) -> Cascade:
    """Return the cascade with the lowest seconds for a pair; plain tiles are one more choice.

    Args:
        pilot: what is measured.
        choices: cascades with integers of 16 bits between.
        queries: of the whole pass.
        items: of the whole pass.
        width: D.
    """
    plain = Cascade()
    whole = pilot.product_seconds(plain)
    operation = whole / width
    settle: dict[bool, float] = {}
    costs = []
    for cascade in (plain, *choices):
        seconds, undecided = pilot.count(cascade)
        if (cascade is plain) not in settle:  # the levels after the tile are all choices' the same
            settle[cascade is plain] = pilot.settle_seconds(undecided, cascade)
        k = cascade.dimensions
        made = 0.0  # what stands for all features
        if cascade is not plain:
            made = k * (width + _COORDINATE / 2) + (1 if k else 2) * _INTEGER / 2 * width
        if k:  # products of few dimensions take as long in proportion
            product = k * operation
        else:
            product = whole if cascade is plain else pilot.product_seconds(cascade)
        cost = product + seconds + len(undecided) / pilot.pairs * settle[cascade is plain]
        costs.append(cost + made * operation * (queries + items) / (queries * items))
    return (plain, *choices)[costs.index(min(costs))]


def _shortest(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the shortest time of three calls, and the last one's result."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begun)
    return min(times), result
